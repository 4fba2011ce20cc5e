//! Values of every request of an administrator of the cluster and of every answer, for the tests of whole frames.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use crate::request::cluster::*;
use crate::request::{Code, Refusal};
use crate::types::{TopicId, TopicPartition};

fn text() -> impl Strategy<Value = String> {
    "[a-zäß.-]{0,10}"
}

fn nodes() -> impl Strategy<Value = Vec<u32>> {
    vec(any::<u32>(), 0..4)
}

fn refusal() -> impl Strategy<Value = Refusal> {
    (select(Code::ALL), text()).prop_map(|(code, message)| Refusal { code, message })
}

fn place() -> impl Strategy<Value = TopicPartition> {
    (any::<[u8; 16]>(), any::<u32>()).prop_map(|(topic, partition)| TopicPartition { topic: TopicId(topic), partition })
}

pub(super) fn request() -> impl Strategy<Value = ClusterRequest> {
    let status = (option::of(text()), any::<bool>(), any::<u32>(), any::<u32>())
        .prop_map(|(topic, all_partitions, skip, most)| StatusQuestion { topic, all_partitions, skip, most });
    let reassign = (text(), vec((any::<u32>(), nodes()), 0..4)).prop_map(|(topic, partitions)| Reassign { topic, partitions });
    let candidate =
        prop_oneof![Just(Candidate::Preferred), any::<u32>().prop_map(Candidate::InSync), any::<u32>().prop_map(Candidate::Unclean),];
    let elect = (text(), any::<u32>(), candidate).prop_map(|(topic, partition, candidate)| ElectLeader { topic, partition, candidate });
    let rebalance = (any::<Option<u32>>(), any::<u32>(), any::<bool>()).prop_map(|(empty, most_moving, dry_run)| Rebalance {
        empty,
        most_moving,
        dry_run,
    });
    prop_oneof![
        status.prop_map(ClusterRequest::Status),
        reassign.prop_map(ClusterRequest::Reassign),
        elect.prop_map(ClusterRequest::Elect),
        rebalance.prop_map(ClusterRequest::Rebalance),
        any::<(u32, bool)>().prop_map(|(node, retiring)| ClusterRequest::Retire { node, retiring }),
        any::<u32>().prop_map(|node| ClusterRequest::Remove { node }),
        vec(place().prop_map(|partition| LogQuestion { partition }), 0..4).prop_map(ClusterRequest::Logs),
        (vec(place(), 0..4), any::<bool>()).prop_map(|(partitions, read)| ClusterRequest::Checks(CheckSegments { partitions, read })),
    ]
}

fn host_port() -> impl Strategy<Value = HostPort> {
    (text(), any::<u16>()).prop_map(|(host, port)| HostPort { host, port })
}

fn node() -> impl Strategy<Value = NodeStatus> {
    let condition = select(vec![NodeCondition::Live, NodeCondition::Draining, NodeCondition::Fenced]);
    let identity = (any::<u32>(), condition, any::<bool>(), any::<u64>(), any::<[u8; 16]>());
    let places = (option::of(text()), text(), option::of(host_port()), vec(host_port(), 0..3));
    (identity, places, any::<[u32; 4]>(), nodes()).prop_map(|(identity, places, [shards, preferred, replicas, behind], leads)| {
        let (node, condition, retiring, node_epoch, incarnation) = identity;
        let (rack, software, cluster_address, clients) = places;
        NodeStatus {
            node,
            condition,
            retiring,
            node_epoch,
            incarnation,
            shards,
            rack,
            software,
            cluster_address,
            clients,
            leads,
            preferred,
            replicas,
            behind,
        }
    })
}

fn status() -> impl Strategy<Value = ClusterStatus> {
    let member = (any::<u32>(), text(), any::<bool>()).prop_map(|(node, address, votes)| ConsensusMember { node, address, votes });
    let consensus = (any::<Option<u32>>(), any::<u64>(), any::<Option<u64>>(), vec(member, 0..4), option::of(text()))
        .prop_map(|(leader, term, applied, members, failure)| ConsensusState { leader, term, applied, members, failure });
    let counts = any::<[u32; 7]>().prop_map(|[topics, partitions, offline, below_min_insync, under_replicated, moving, led_elsewhere]| {
        ClusterCounts { topics, partitions, offline, below_min_insync, under_replicated, moving, led_elsewhere }
    });
    let partition =
        (text(), any::<u32>(), any::<Option<u32>>(), any::<i32>(), nodes(), nodes(), nodes(), option::of(nodes()), any::<u16>());
    let partition = partition.prop_map(|(topic, partition, leader, leader_epoch, replicas, isr, eligible, target, min_insync)| {
        PartitionState { topic, partition, leader, leader_epoch, replicas, isr, eligible, target, min_insync }
    });
    let numbers = (any::<[u8; 16]>(), any::<u32>(), any::<u64>(), any::<u32>());
    (numbers, consensus, vec(node(), 0..4), counts, vec(partition, 0..4)).prop_map(
        |((cluster, node, version, left), consensus, nodes, counts, partitions)| ClusterStatus {
            cluster,
            node,
            version,
            consensus,
            nodes,
            counts,
            partitions,
            left,
        },
    )
}

fn step() -> impl Strategy<Value = RebalanceStep> {
    let planned = || {
        let planned = (text(), any::<u32>(), nodes(), nodes());
        vec(planned.prop_map(|(topic, partition, from, to)| PlannedMove { topic, partition, from, to }), 0..4)
    };
    (planned(), planned(), any::<[u32; 4]>(), nodes(), option::of(refusal())).prop_map(
        |(begun, planned, [unnamed, moving, without_leader, led_elsewhere], waits_for, refusal)| RebalanceStep {
            begun,
            planned,
            unnamed,
            moving,
            waits_for,
            without_leader,
            led_elsewhere,
            refusal,
        },
    )
}

fn log() -> impl Strategy<Value = ReplicaLog> {
    let segment = (any::<[i64; 2]>(), any::<[u64; 2]>(), any::<u32>(), any::<bool>());
    let segment = segment.prop_map(|([base_offset, end_offset], [running_hash, bytes], generation, sealed)| SegmentHash {
        base_offset,
        end_offset,
        running_hash,
        bytes,
        generation,
        sealed,
    });
    (any::<[i64; 3]>(), any::<i32>(), option::of(0..i32::MAX), vec(segment, 0..4)).prop_map(
        |([log_start, log_end, high_watermark], leader_epoch, last_epoch, segments)| ReplicaLog {
            log_start,
            log_end,
            high_watermark,
            leader_epoch,
            last_epoch,
            segments,
        },
    )
}

pub(super) fn answer() -> impl Strategy<Value = ClusterAnswer> {
    let outcome = prop_oneof![2 => Just(Ok(())), 1 => refusal().prop_map(Err)];
    let logged = prop_oneof![2 => log().prop_map(Ok), 1 => refusal().prop_map(Err)];
    let logged = (place(), logged).prop_map(|(partition, outcome)| ReplicaLogResult { partition, outcome });
    let damaged = || vec((any::<i64>(), text()).prop_map(|(base_offset, what)| DamagedSegment { base_offset, what }), 0..3);
    let checks = (any::<[u32; 2]>(), damaged(), damaged());
    let checks = checks.prop_map(|([waiting, sound], damaged, mended)| SegmentChecks { waiting, sound, damaged, mended });
    let checked = prop_oneof![2 => checks.prop_map(Ok), 1 => refusal().prop_map(Err)];
    let checked = (place(), checked).prop_map(|(partition, outcome)| SegmentChecksResult { partition, outcome });
    prop_oneof![
        status().prop_map(|status| ClusterAnswer::Status(Box::new(status))),
        vec((any::<u32>(), outcome), 0..4).prop_map(ClusterAnswer::Reassigned),
        any::<(u32, i32)>().prop_map(|(leader, leader_epoch)| ClusterAnswer::Elected { leader, leader_epoch }),
        step().prop_map(ClusterAnswer::Rebalanced),
        Just(ClusterAnswer::Retired),
        Just(ClusterAnswer::Removed),
        vec(logged, 0..4).prop_map(ClusterAnswer::Logs),
        vec(checked, 0..4).prop_map(ClusterAnswer::Checks),
    ]
}
