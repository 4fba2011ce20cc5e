//! Operating a cluster: its state, where replicas are to be, who is to lead.

use super::admin::Admin;
use super::brokers::{Target, unexpected};
use super::error::ClientError;
use crate::limits;
use crate::request::cluster::{
    CheckSegments, ClusterAnswer, ClusterRequest, ClusterStatus, ElectLeader, LogQuestion, Reassign, Rebalance, RebalanceStep,
    ReplicaLogResult, SegmentChecksResult, StatusQuestion,
};
use crate::request::{Code, Refusal, Request, Response};
use crate::types::{LeaderEpoch, TopicPartition};

impl Admin {
    /// How the cluster is, as the node knows it that answers.
    ///
    /// # Errors
    /// Refused: `UnknownTopicOrPartition`; or no broker answers.
    pub async fn cluster_status(&self, question: StatusQuestion) -> Result<ClusterStatus, ClientError> {
        match self.ask(Target::Any, ClusterRequest::Status(question)).await? {
            ClusterAnswer::Status(status) => Ok(*status),
            other => Err(unexpected(&Response::Cluster(other))),
        }
    }

    /// Begins to move replicas of a topic's partitions to other nodes; what came of each. [`Admin::cluster_status`] says when they are there.
    ///
    /// # Errors
    /// Refused: `UnknownTopicOrPartition`; or no broker answers.
    pub async fn reassign(&self, asked: Reassign) -> Result<Vec<(u32, Result<(), Refusal>)>, ClientError> {
        match self.ask(Target::Any, ClusterRequest::Reassign(asked)).await? {
            ClusterAnswer::Reassigned(outcomes) => Ok(outcomes),
            other => Err(unexpected(&Response::Cluster(other))),
        }
    }

    /// Makes somebody lead a partition; the node and its epoch.
    ///
    /// # Errors
    /// Refused: `UnknownTopicOrPartition`, `ElectionNotNeeded`, `PreferredLeaderNotAvailable`, `EligibleLeadersNotAvailable`, `InvalidRequest`; or no broker answers.
    pub async fn elect_leader(&self, asked: ElectLeader) -> Result<(u32, LeaderEpoch), ClientError> {
        match self.ask(Target::Any, ClusterRequest::Elect(asked)).await? {
            ClusterAnswer::Elected { leader, leader_epoch } => Ok((leader, leader_epoch)),
            other => Err(unexpected(&Response::Cluster(other))),
        }
    }

    /// Does the next step of a rebalance. To be asked until [`RebalanceStep::is_done`]; whoever asks may stop at any point, and another may go on.
    ///
    /// # Errors
    /// Refused: `BrokerIdNotRegistered`, `InvalidReplicationFactor` where replicas can't go anywhere; or no broker answers.
    pub async fn rebalance(&self, asked: Rebalance) -> Result<RebalanceStep, ClientError> {
        match self.ask(Target::Any, ClusterRequest::Rebalance(asked)).await? {
            ClusterAnswer::Rebalanced(step) => Ok(step),
            other => Err(unexpected(&Response::Cluster(other))),
        }
    }

    /// A node is to get no replicas any more, or may get some again.
    ///
    /// # Errors
    /// Refused: `BrokerIdNotRegistered`; or no broker answers.
    pub async fn retire_node(&self, node: u32, retiring: bool) -> Result<(), ClientError> {
        match self.ask(Target::Any, ClusterRequest::Retire { node, retiring }).await? {
            ClusterAnswer::Retired => Ok(()),
            other => Err(unexpected(&Response::Cluster(other))),
        }
    }

    /// A node that has no replicas and has stopped leaves the cluster.
    ///
    /// # Errors
    /// Refused: `BrokerIdNotRegistered`, `InvalidRequest` while it runs or has replicas; or no broker answers.
    pub async fn remove_node(&self, node: u32) -> Result<(), ClientError> {
        match self.ask(Target::Any, ClusterRequest::Remove { node }).await? {
            ClusterAnswer::Removed => Ok(()),
            other => Err(unexpected(&Response::Cluster(other))),
        }
    }

    /// What a node has of partitions, at most [`limits::REPLICA_LOGS`] of them.
    ///
    /// # Errors
    /// The node does not answer.
    pub async fn replica_logs(&self, node: u32, partitions: &[TopicPartition]) -> Result<Vec<ReplicaLogResult>, ClientError> {
        let questions = partitions.iter().map(|partition| LogQuestion { partition: *partition }).collect();
        // Its first shard passes on what is another one's.
        match self.ask(Target::Broker(node * limits::MAX_SHARDS), ClusterRequest::Logs(questions)).await? {
            ClusterAnswer::Logs(logs) => Ok(logs),
            other => Err(unexpected(&Response::Cluster(other))),
        }
    }

    /// How the sealed segments of partitions, at most [`limits::REPLICA_LOGS`] of them, are on a node's disk.
    ///
    /// # Errors
    /// The node does not answer.
    pub async fn segment_checks(&self, node: u32, asked: CheckSegments) -> Result<Vec<SegmentChecksResult>, ClientError> {
        match self.ask(Target::Broker(node * limits::MAX_SHARDS), ClusterRequest::Checks(asked)).await? {
            ClusterAnswer::Checks(checks) => Ok(checks),
            other => Err(unexpected(&Response::Cluster(other))),
        }
    }

    async fn ask(&self, target: Target, request: ClusterRequest) -> Result<ClusterAnswer, ClientError> {
        let request = Request::Cluster(request);
        let attempt = || async {
            match self.brokers().request_once(target, &request).await {
                Ok(answer) => Ok(Ok(answer.response)),
                // What an administrator has to know, not what passes by itself.
                Err(ClientError::Refused(refusal)) if is_final(refusal.code) => Ok(Err(refusal)),
                Err(error) => Err(error),
            }
        };
        match self.brokers().retrying(attempt).await?? {
            Response::Cluster(answer) => Ok(answer),
            other => Err(unexpected(&other)),
        }
    }
}

/// Refusals that are worth a retry to a producer, and none to who asked for this very change.
fn is_final(code: Code) -> bool {
    matches!(
        code,
        Code::UnknownTopicOrPartition | Code::ElectionNotNeeded | Code::PreferredLeaderNotAvailable | Code::EligibleLeadersNotAvailable
    )
}
