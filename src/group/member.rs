//! One member of a group.

use crate::request::group::{JoinGroup, Protocol};
use std::sync::Arc;

use bytes::Bytes;

use super::message::Waiter;
use super::records::StoredMember;

#[derive(Clone, Debug)]
pub(super) struct Member {
    pub instance_id: Option<Arc<str>>,
    pub client_id: Arc<str>,
    pub client_host: Arc<str>,
    pub session_timeout_ms: i32,
    pub rebalance_timeout_ms: i32,
    /// In its order of preference.
    pub protocols: Vec<Protocol>,
    pub assignment: Bytes,
    /// Its join that is not answered yet.
    pub join: Option<Waiter>,
    /// Its sync that is not answered yet.
    pub sync: Option<Waiter>,
    /// It has not been answered a join yet: it does not know its id, so it can't send heartbeats.
    pub is_new: bool,
}

impl Member {
    pub fn new(join: &JoinGroup) -> Member {
        let mut member = Member {
            instance_id: join.instance_id.as_deref().map(Arc::from),
            client_id: join.client_id.as_str().into(),
            client_host: join.client_host.as_str().into(),
            session_timeout_ms: 0,
            rebalance_timeout_ms: 0,
            protocols: Vec::new(),
            assignment: Bytes::new(),
            join: None,
            sync: None,
            is_new: true,
        };
        member.update(join);
        member
    }

    /// As loaded from the log: of its protocols only the chosen one is known.
    pub fn loaded(stored: &StoredMember, protocol: Arc<str>) -> Member {
        Member {
            instance_id: stored.instance_id.clone(),
            client_id: stored.client_id.clone(),
            client_host: stored.client_host.clone(),
            session_timeout_ms: stored.session_timeout_ms,
            rebalance_timeout_ms: stored.rebalance_timeout_ms,
            protocols: vec![Protocol { name: protocol, metadata: stored.subscription.clone() }],
            assignment: stored.assignment.clone(),
            join: None,
            sync: None,
            is_new: false,
        }
    }

    /// Takes what a join says of protocols and timeouts. Metadata is copied: kept as it came, it would hold on to the whole request.
    pub fn update(&mut self, join: &JoinGroup) {
        self.session_timeout_ms = join.session_timeout_ms;
        self.rebalance_timeout_ms = if join.rebalance_timeout_ms < 0 { join.session_timeout_ms } else { join.rebalance_timeout_ms };
        let copied = |p: &Protocol| Protocol { name: p.name.clone(), metadata: Bytes::copy_from_slice(&p.metadata) };
        self.protocols = join.protocols.iter().map(copied).collect();
    }

    pub fn is_static(&self) -> bool {
        self.instance_id.is_some()
    }

    /// Its metadata for a protocol; empty for one that it does not offer.
    pub fn metadata(&self, protocol: &str) -> Bytes {
        self.protocols.iter().find(|p| &*p.name == protocol).map(|p| p.metadata.clone()).unwrap_or_default()
    }

    /// Bytes of its metadata.
    pub fn metadata_len(&self) -> usize {
        self.protocols.iter().map(|p| p.metadata.len()).sum()
    }

    /// Whether the end of its session says nothing: a request of it waits here. A new member's join may be one that nobody waits for any more.
    pub fn is_excused(&self) -> bool {
        !self.is_new && (self.join.is_some() || self.sync.is_some())
    }

    /// As it is stored.
    pub fn stored(&self, member_id: &Arc<str>, protocol: &str, assignment: Bytes) -> StoredMember {
        StoredMember {
            member_id: member_id.clone(),
            instance_id: self.instance_id.clone(),
            client_id: self.client_id.clone(),
            client_host: self.client_host.clone(),
            rebalance_timeout_ms: self.rebalance_timeout_ms,
            session_timeout_ms: self.session_timeout_ms,
            subscription: self.metadata(protocol),
            assignment,
        }
    }
}
