//! Between the shards of a node: requests for partitions that another shard owns.
//!
//! A client that follows the metadata never causes one; behind a single forwarded port everything still works. Payloads are copied here, once each way,
//! because memory belongs to its shard.

use async_channel::{Receiver, Sender, bounded};
use bytes::Bytes;

use crate::limits::MESH_QUEUE;
use crate::request::{Code, Fetch, Refusal, Request, Response};

/// A request for another shard.
pub struct MeshRequest {
    /// Only partitions of that shard.
    pub request: Request,
    /// What the request's ranges point into.
    pub payload: Bytes,
    /// Of a fetch: answer when there is enough, without the batches.
    pub is_probe: bool,
    /// Where the answer goes.
    pub reply: Sender<MeshReply>,
}

/// The answer of another shard.
pub struct MeshReply {
    /// What it says.
    pub response: Response,
    /// A batch that is too large for memory and comes before the others.
    pub segment: Option<SegmentPart>,
    /// The batches of a fetch.
    pub payload: Bytes,
}

impl MeshReply {
    /// One without batches.
    pub fn new(response: Response) -> MeshReply {
        MeshReply { response, segment: None, payload: Bytes::new() }
    }
}

/// Bytes of a segment that the asking shard sends from the file: any shard may read it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SegmentPart {
    /// The file's path below the data directory.
    pub path: String,
    /// Where they begin.
    pub position: u64,
    /// How many bytes.
    pub len: usize,
}

/// One shard's place in the mesh.
#[derive(Clone)]
pub struct Mesh {
    shard: u32,
    others: Vec<Sender<MeshRequest>>,
    inbox: Receiver<MeshRequest>,
}

/// The mesh of a node, one place for each shard.
pub fn mesh(shards: u32) -> Vec<Mesh> {
    let (senders, inboxes): (Vec<_>, Vec<_>) = (0..shards).map(|_| bounded(MESH_QUEUE)).unzip();
    (0..shards).zip(inboxes).map(|(shard, inbox)| Mesh { shard, others: senders.clone(), inbox }).collect()
}

impl Mesh {
    /// Which shard.
    pub fn shard(&self) -> u32 {
        self.shard
    }

    /// How many there are.
    pub fn shards(&self) -> u32 {
        self.others.len() as u32
    }

    /// Hands a request to another shard; requests to one shard arrive in the order in which this returned.
    pub async fn send(&self, shard: u32, request: Request, payload: Bytes) -> Receiver<MeshReply> {
        self.hand_over(shard, request, payload, false).await
    }

    /// As [`Mesh::send`] of a fetch whose batches are not wanted, only the moment from which they are there.
    pub async fn probe(&self, shard: u32, fetch: Fetch) -> Receiver<MeshReply> {
        self.hand_over(shard, Request::Fetch(fetch), Bytes::new(), true).await
    }

    async fn hand_over(&self, shard: u32, request: Request, payload: Bytes, is_probe: bool) -> Receiver<MeshReply> {
        let (reply, answer) = bounded(1);
        // A shard that has ended drops the request, and so the sender of the answer: the caller sees that.
        let _ = self.others[shard as usize].send(MeshRequest { request, payload, is_probe, reply }).await;
        answer
    }

    /// The next request of another shard.
    pub async fn receive(&self) -> Option<MeshRequest> {
        self.inbox.recv().await.ok()
    }
}

/// What a caller says when the other shard has gone.
pub fn shard_gone() -> Refusal {
    Refusal::new(Code::Unavailable, "the shard that owns the partition is going down")
}
