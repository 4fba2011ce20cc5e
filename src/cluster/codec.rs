//! The bodies of the commands as FlatBuffers (`schemas/catalogue.fbs`), in both directions.

use flatbuffers::{FlatBufferBuilder, ForwardsUOffset, UnionWIPOffset, Vector, WIPOffset};

use super::command::{Command, CommandError, Election, PartitionsSnapshot};
use super::generated::corelane::catalogue as fb;
use super::node::{Endpoint, Node, NodeState, Registration};
use crate::replication::{IsrChange, Joiner, NodeId, PartitionRecord, Replica};
use crate::types::{Durability, TopicId, TopicPartition};

type Body = (fb::Body, WIPOffset<UnionWIPOffset>);

pub(super) fn build_body<'b>(command: &Command, builder: &mut FlatBufferBuilder<'b>) -> Body {
    match command {
        Command::CreateTopic { id, name, partitions, replication_factor, config } => {
            let settings = build_settings(builder, config.iter().map(|(n, v)| (n.as_str(), Some(v.as_str()))));
            let args = fb::CreateTopicArgs {
                id: Some(&fb::Uuid::new(&id.0)),
                name: Some(builder.create_string(name)),
                partitions: *partitions,
                replication_factor: *replication_factor,
                settings: Some(settings),
            };
            (fb::Body::CreateTopic, fb::CreateTopic::create(builder, &args).as_union_value())
        }
        Command::DeleteTopic { id } => {
            let args = fb::DeleteTopicArgs { id: Some(&fb::Uuid::new(&id.0)) };
            (fb::Body::DeleteTopic, fb::DeleteTopic::create(builder, &args).as_union_value())
        }
        Command::AlterTopic { id, partitions, config } => {
            let settings = build_settings(builder, config.iter().map(|(n, v)| (n.as_str(), v.as_deref())));
            let args = fb::AlterTopicArgs { id: Some(&fb::Uuid::new(&id.0)), partitions: *partitions, settings: Some(settings) };
            (fb::Body::AlterTopic, fb::AlterTopic::create(builder, &args).as_union_value())
        }
        Command::NodeStarted => (fb::Body::NodeStarted, fb::NodeStarted::create(builder, &fb::NodeStartedArgs {}).as_union_value()),
        Command::AllocateProducerIds { count } => {
            let args = fb::AllocateProducerIdsArgs { count: *count };
            (fb::Body::AllocateProducerIds, fb::AllocateProducerIds::create(builder, &args).as_union_value())
        }
        Command::DurableMark => (fb::Body::DurableMark, fb::DurableMark::create(builder, &fb::DurableMarkArgs {}).as_union_value()),
        Command::RegisterNode(registration) => (fb::Body::RegisterNode, build_registration(builder, registration).as_union_value()),
        Command::FenceNode { node, node_epoch } => {
            let args = fb::FenceNodeArgs { node: *node, node_epoch: *node_epoch };
            (fb::Body::FenceNode, fb::FenceNode::create(builder, &args).as_union_value())
        }
        Command::DrainNode { node, node_epoch } => {
            let args = fb::DrainNodeArgs { node: *node, node_epoch: *node_epoch };
            (fb::Body::DrainNode, fb::DrainNode::create(builder, &args).as_union_value())
        }
        Command::RetireNode { node, retiring } => {
            let args = fb::RetireNodeArgs { node: *node, retiring: *retiring };
            (fb::Body::RetireNode, fb::RetireNode::create(builder, &args).as_union_value())
        }
        Command::RemoveNode { node } => {
            (fb::Body::RemoveNode, fb::RemoveNode::create(builder, &fb::RemoveNodeArgs { node: *node }).as_union_value())
        }
        Command::BalanceLeaders { most } => {
            (fb::Body::BalanceLeaders, fb::BalanceLeaders::create(builder, &fb::BalanceLeadersArgs { most: *most }).as_union_value())
        }
        Command::SnapshotCluster { cluster, last_node_epoch } => {
            let args = fb::SnapshotClusterArgs { cluster: Some(&fb::Uuid::new(cluster)), last_node_epoch: *last_node_epoch };
            (fb::Body::SnapshotCluster, fb::SnapshotCluster::create(builder, &args).as_union_value())
        }
        Command::SnapshotNode(node) => {
            let args = fb::SnapshotNodeArgs {
                registration: Some(build_registration(builder, &node.registration)),
                node_epoch: node.epoch,
                state: match node.state {
                    NodeState::Live => fb::NodeState::Live,
                    NodeState::Draining => fb::NodeState::Draining,
                    NodeState::Fenced => fb::NodeState::Fenced,
                },
                retiring: node.retiring,
            };
            (fb::Body::SnapshotNode, fb::SnapshotNode::create(builder, &args).as_union_value())
        }
        Command::SnapshotPartitions(snapshot) => {
            let partitions: Vec<_> = snapshot.partitions.iter().map(|(record, shards)| build_partition(builder, record, shards)).collect();
            let args = fb::SnapshotPartitionsArgs {
                topic: Some(&fb::Uuid::new(&snapshot.topic.0)),
                first: snapshot.first,
                partitions: Some(builder.create_vector(&partitions)),
            };
            (fb::Body::SnapshotPartitions, fb::SnapshotPartitions::create(builder, &args).as_union_value())
        }
        Command::ChangeIsr { partition, .. }
        | Command::ReplicaLost { partition, .. }
        | Command::ElectLeader { partition, .. }
        | Command::Reassign { partition, .. }
        | Command::PlaceOnShard { partition, .. } => build_of_partition(command, *partition, builder),
    }
}

/// The commands of one partition.
fn build_of_partition(command: &Command, partition: TopicPartition, builder: &mut FlatBufferBuilder<'_>) -> Body {
    let uuid = fb::Uuid::new(&partition.topic.0);
    let (topic, partition) = (Some(&uuid), partition.partition);
    match command {
        Command::ChangeIsr { change, .. } => {
            let joiner = |joiner: &Joiner| fb::Joiner::new(joiner.node_epoch, &build_replica(joiner.replica));
            let join: Vec<_> = change.join.iter().map(joiner).collect();
            let args = fb::ChangeIsrArgs {
                topic,
                partition,
                leader: change.leader,
                leader_epoch: change.leader_epoch,
                version: change.version,
                leave: Some(builder.create_vector(&change.leave)),
                join: Some(builder.create_vector(&join)),
            };
            (fb::Body::ChangeIsr, fb::ChangeIsr::create(builder, &args).as_union_value())
        }
        Command::ReplicaLost { replica, .. } => {
            let args = fb::ReplicaLostArgs { topic, partition, replica: Some(&build_replica(*replica)) };
            (fb::Body::ReplicaLost, fb::ReplicaLost::create(builder, &args).as_union_value())
        }
        Command::ElectLeader { election, .. } => {
            let (election, node) = match election {
                Election::Preferred => (fb::Election::Preferred, 0),
                Election::HandOver(node) => (fb::Election::HandOver, *node),
                Election::Unclean(node) => (fb::Election::Unclean, *node),
            };
            (
                fb::Body::ElectLeader,
                fb::ElectLeader::create(builder, &fb::ElectLeaderArgs { topic, partition, election, node }).as_union_value(),
            )
        }
        Command::Reassign { target, .. } => {
            let args = fb::ReassignArgs { topic, partition, target: Some(builder.create_vector(target)) };
            (fb::Body::Reassign, fb::Reassign::create(builder, &args).as_union_value())
        }
        Command::PlaceOnShard { node, shard, .. } => {
            let args = fb::PlaceOnShardArgs { topic, partition, node: *node, shard: *shard };
            (fb::Body::PlaceOnShard, fb::PlaceOnShard::create(builder, &args).as_union_value())
        }
        other => unreachable!("{other:?} is of no one partition"),
    }
}

type Settings<'a> = Vector<'a, ForwardsUOffset<fb::Setting<'a>>>;

fn build_settings<'a, 'b>(
    builder: &mut FlatBufferBuilder<'b>,
    pairs: impl Iterator<Item = (&'a str, Option<&'a str>)>,
) -> WIPOffset<Vector<'b, ForwardsUOffset<fb::Setting<'b>>>> {
    let mut settings = Vec::new();
    for (name, value) in pairs {
        let name = Some(builder.create_string(name));
        let value = value.map(|v| builder.create_string(v));
        settings.push(fb::Setting::create(builder, &fb::SettingArgs { name, value }));
    }
    builder.create_vector(&settings)
}

fn build_replica(replica: Replica) -> fb::Replica {
    fb::Replica::new(replica.node, replica.incarnation)
}

fn build_endpoint<'b>(builder: &mut FlatBufferBuilder<'b>, endpoint: &Endpoint) -> WIPOffset<fb::Endpoint<'b>> {
    let host = Some(builder.create_string(&endpoint.host));
    fb::Endpoint::create(builder, &fb::EndpointArgs { host, port: endpoint.port })
}

fn build_registration<'b>(builder: &mut FlatBufferBuilder<'b>, registration: &Registration) -> WIPOffset<fb::RegisterNode<'b>> {
    let clients: Vec<_> = registration.clients.iter().map(|endpoint| build_endpoint(builder, endpoint)).collect();
    let args = fb::RegisterNodeArgs {
        node: registration.node,
        incarnation: Some(&fb::Uuid::new(&registration.incarnation)),
        cluster: Some(&fb::Uuid::new(&registration.cluster)),
        protocol: registration.protocol,
        software: Some(builder.create_string(&registration.software)),
        cluster_address: registration.cluster_address.as_ref().map(|endpoint| build_endpoint(builder, endpoint)),
        replication_port: registration.replication_port,
        clients: Some(builder.create_vector(&clients)),
        shards: registration.shards,
        rack: registration.rack.as_ref().map(|rack| builder.create_string(rack)),
        durability: match registration.durability {
            Durability::Memory => 0,
            Durability::Written => 1,
            Durability::Durable => 2,
        },
        clean_stop: registration.clean_stop,
    };
    fb::RegisterNode::create(builder, &args)
}

fn build_partition<'b>(
    builder: &mut FlatBufferBuilder<'b>,
    record: &PartitionRecord,
    shards: &[(NodeId, u32)],
) -> WIPOffset<fb::Partition<'b>> {
    let replicas: Vec<_> = record.replicas.iter().copied().map(build_replica).collect();
    let shards: Vec<_> = shards.iter().map(|(node, shard)| fb::ShardPlace::new(*node, *shard)).collect();
    let args = fb::PartitionArgs {
        replicas: Some(builder.create_vector(&replicas)),
        target: record.target.as_ref().map(|target| builder.create_vector(target)),
        isr: Some(builder.create_vector(&record.isr)),
        eligible: (!record.eligible.is_empty()).then(|| builder.create_vector(&record.eligible)),
        leader: record.leader,
        leader_epoch: record.leader_epoch,
        version: record.version,
        unclean_epoch: record.unclean_epoch,
        shards: (!shards.is_empty()).then(|| builder.create_vector(&shards)),
    };
    fb::Partition::create(builder, &args)
}

pub(super) fn read_body(command: &fb::Command<'_>) -> Result<Command, CommandError> {
    let kind = command.body_type();
    let absent = || CommandError::UnknownKind(kind.0);
    Ok(match kind {
        fb::Body::CreateTopic => {
            let body = command.body_as_create_topic().ok_or_else(absent)?;
            Command::CreateTopic {
                id: read_topic(body.id()),
                name: body.name().into(),
                partitions: body.partitions(),
                replication_factor: body.replication_factor(),
                config: read_values(body.settings())?,
            }
        }
        fb::Body::DeleteTopic => Command::DeleteTopic { id: read_topic(command.body_as_delete_topic().ok_or_else(absent)?.id()) },
        fb::Body::AlterTopic => {
            let body = command.body_as_alter_topic().ok_or_else(absent)?;
            Command::AlterTopic { id: read_topic(body.id()), partitions: body.partitions(), config: read_changes(body.settings()) }
        }
        fb::Body::NodeStarted => Command::NodeStarted,
        fb::Body::AllocateProducerIds => {
            let body = command.body_as_allocate_producer_ids().ok_or_else(absent)?;
            Command::AllocateProducerIds { count: body.count() }
        }
        fb::Body::DurableMark => Command::DurableMark,
        fb::Body::RegisterNode => Command::RegisterNode(Box::new(read_registration(&command.body_as_register_node().ok_or_else(absent)?)?)),
        fb::Body::FenceNode => {
            let body = command.body_as_fence_node().ok_or_else(absent)?;
            Command::FenceNode { node: body.node(), node_epoch: body.node_epoch() }
        }
        fb::Body::DrainNode => {
            let body = command.body_as_drain_node().ok_or_else(absent)?;
            Command::DrainNode { node: body.node(), node_epoch: body.node_epoch() }
        }
        fb::Body::RetireNode => {
            let body = command.body_as_retire_node().ok_or_else(absent)?;
            Command::RetireNode { node: body.node(), retiring: body.retiring() }
        }
        fb::Body::RemoveNode => Command::RemoveNode { node: command.body_as_remove_node().ok_or_else(absent)?.node() },
        fb::Body::BalanceLeaders => Command::BalanceLeaders { most: command.body_as_balance_leaders().ok_or_else(absent)?.most() },
        fb::Body::SnapshotCluster => {
            let body = command.body_as_snapshot_cluster().ok_or_else(absent)?;
            Command::SnapshotCluster { cluster: body.cluster().bytes().into(), last_node_epoch: body.last_node_epoch() }
        }
        fb::Body::SnapshotNode => {
            let body = command.body_as_snapshot_node().ok_or_else(absent)?;
            let state = match body.state() {
                fb::NodeState::Live => NodeState::Live,
                fb::NodeState::Draining => NodeState::Draining,
                fb::NodeState::Fenced => NodeState::Fenced,
                other => return Err(CommandError::Invalid(format!("{} is no state of a node", other.0))),
            };
            let (registration, epoch, retiring) = (read_registration(&body.registration())?, body.node_epoch(), body.retiring());
            Command::SnapshotNode(Box::new(Node { registration, epoch, state, retiring }))
        }
        fb::Body::SnapshotPartitions => {
            let body = command.body_as_snapshot_partitions().ok_or_else(absent)?;
            let partitions = body.partitions().into_iter().flatten().map(|partition| read_partition(&partition)).collect();
            Command::SnapshotPartitions(PartitionsSnapshot { topic: read_topic(body.topic()), first: body.first(), partitions })
        }
        _ => return read_of_partition(command),
    })
}

/// The commands of one partition.
fn read_of_partition(command: &fb::Command<'_>) -> Result<Command, CommandError> {
    let kind = command.body_type();
    let absent = || CommandError::UnknownKind(kind.0);
    let at = |topic: &fb::Uuid, partition: u32| TopicPartition { topic: read_topic(topic), partition };
    Ok(match kind {
        fb::Body::ChangeIsr => {
            let body = command.body_as_change_isr().ok_or_else(absent)?;
            let joiner = |joiner: &fb::Joiner| Joiner { replica: read_replica(joiner.replica()), node_epoch: joiner.node_epoch() };
            let change = IsrChange {
                leader: body.leader(),
                leader_epoch: body.leader_epoch(),
                version: body.version(),
                leave: read_nodes(body.leave()),
                join: body.join().into_iter().flatten().map(joiner).collect(),
            };
            Command::ChangeIsr { partition: at(body.topic(), body.partition()), change }
        }
        fb::Body::ReplicaLost => {
            let body = command.body_as_replica_lost().ok_or_else(absent)?;
            Command::ReplicaLost { partition: at(body.topic(), body.partition()), replica: read_replica(body.replica()) }
        }
        fb::Body::ElectLeader => {
            let body = command.body_as_elect_leader().ok_or_else(absent)?;
            let election = match body.election() {
                fb::Election::Preferred => Election::Preferred,
                fb::Election::HandOver => Election::HandOver(body.node()),
                fb::Election::Unclean => Election::Unclean(body.node()),
                other => return Err(CommandError::Invalid(format!("{} is no kind of election", other.0))),
            };
            Command::ElectLeader { partition: at(body.topic(), body.partition()), election }
        }
        fb::Body::Reassign => {
            let body = command.body_as_reassign().ok_or_else(absent)?;
            Command::Reassign { partition: at(body.topic(), body.partition()), target: read_nodes(body.target()) }
        }
        fb::Body::PlaceOnShard => {
            let body = command.body_as_place_on_shard().ok_or_else(absent)?;
            Command::PlaceOnShard { partition: at(body.topic(), body.partition()), node: body.node(), shard: body.shard() }
        }
        other => return Err(CommandError::UnknownKind(other.0)),
    })
}

fn read_topic(id: &fb::Uuid) -> TopicId {
    TopicId(id.bytes().into())
}

fn read_nodes(nodes: Option<Vector<'_, u32>>) -> Vec<NodeId> {
    nodes.into_iter().flatten().collect()
}

fn read_replica(replica: &fb::Replica) -> Replica {
    Replica { node: replica.node(), incarnation: replica.incarnation() }
}

fn read_endpoint(endpoint: fb::Endpoint<'_>) -> Endpoint {
    Endpoint::new(endpoint.host(), endpoint.port())
}

fn read_registration(body: &fb::RegisterNode<'_>) -> Result<Registration, CommandError> {
    Ok(Registration {
        node: body.node(),
        incarnation: body.incarnation().bytes().into(),
        cluster: body.cluster().bytes().into(),
        protocol: body.protocol(),
        software: body.software().unwrap_or_default().into(),
        cluster_address: body.cluster_address().map(read_endpoint),
        replication_port: body.replication_port(),
        clients: body.clients().into_iter().flatten().map(read_endpoint).collect(),
        shards: body.shards(),
        rack: body.rack().map(str::to_owned),
        durability: match body.durability() {
            0 => Durability::Memory,
            1 => Durability::Written,
            2 => Durability::Durable,
            other => return Err(CommandError::Invalid(format!("{other} is no durability"))),
        },
        clean_stop: body.clean_stop(),
    })
}

fn read_partition(body: &fb::Partition<'_>) -> (PartitionRecord, Vec<(NodeId, u32)>) {
    let record = PartitionRecord {
        replicas: body.replicas().into_iter().flatten().map(read_replica).collect(),
        target: body.target().map(|target| read_nodes(Some(target))),
        isr: read_nodes(body.isr()),
        eligible: read_nodes(body.eligible()),
        leader: body.leader(),
        leader_epoch: body.leader_epoch(),
        version: body.version(),
        unclean_epoch: body.unclean_epoch(),
    };
    (record, body.shards().into_iter().flatten().map(|place| (place.node(), place.shard())).collect())
}

fn read_changes(settings: Option<Settings<'_>>) -> Vec<(String, Option<String>)> {
    let pair = |setting: fb::Setting<'_>| (setting.name().to_owned(), setting.value().map(str::to_owned));
    settings.into_iter().flatten().map(pair).collect()
}

fn read_values(settings: Option<Settings<'_>>) -> Result<Vec<(String, String)>, CommandError> {
    let pair = |(name, value): (String, Option<String>)| match value {
        Some(value) => Ok((name, value)),
        None => Err(CommandError::Invalid(format!("setting {name} of a new topic has no value"))),
    };
    read_changes(settings).into_iter().map(pair).collect()
}
