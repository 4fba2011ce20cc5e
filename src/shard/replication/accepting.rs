//! Connections of leaders' shards: who comes is who he says, by the metadata; then his messages go to the replicas that they are for.

use std::collections::HashSet;
use std::rc::Rc;
use std::time::Duration;

use futures_util::AsyncReadExt;
use glommio::net::{TcpListener, TcpStream};

use crate::limits::{LINK_CONNECT_MS, MAX_LINKS};
use crate::metrics::Counter;
use crate::replication::codec::{Frame, Hello, HelloReply};
use crate::shard::context::Context;
use crate::shard::net::{Outgoing, Sender};
use crate::shard::replication::connection::{LinkEnd, Receiver, await_hello, reply_bytes, slices};
use crate::shard::replication::outbox::Outbox;
use crate::shard::replication::replica::Input;

/// The task that takes connections on the shard's port for replication.
pub async fn accept(context: Rc<Context>, listener: TcpListener) {
    let open = Rc::new(std::cell::Cell::new(0));
    loop {
        match listener.accept().await {
            Ok(_) if open.get() >= MAX_LINKS => context.metrics.add(Counter::ConnectionsRefused, 1),
            Ok(stream) => {
                let (context, open) = (context.clone(), open.clone());
                open.set(open.get() + 1);
                glommio::spawn_local(async move {
                    let peer = stream.peer_addr().map_or_else(|_| "unknown".into(), |address| address.to_string());
                    let end = serve(&context, stream).await;
                    open.set(open.get() - 1);
                    tracing::debug!(peer, reason = %end, "a connection for replication ended");
                })
                .detach();
            }
            Err(error) => {
                tracing::warn!(%error, "a connection for replication could not be accepted");
                glommio::timer::sleep(Duration::from_millis(10)).await;
            }
        }
    }
}

async fn serve(context: &Rc<Context>, stream: TcpStream) -> LinkEnd {
    if let Err(error) = stream.set_nodelay(true) {
        return LinkEnd::Io(error.into());
    }
    let sender = Sender::new(&stream, Rc::default(), context.metrics.clone());
    let (read, write) = stream.split();
    let writer = glommio::spawn_local(sender.clone().run(write)).detach();
    let mut receiver = Receiver::new(read);
    let patience = Duration::from_millis(LINK_CONNECT_MS);
    let hello = match glommio::timer::timeout(patience, async { Ok(await_hello(&mut receiver).await) }).await {
        Ok(hello) => hello,
        Err::<_, glommio::GlommioError<()>>(_) => Err(LinkEnd::Unexpected { expected: "a hello in time" }),
    };
    let end = match hello {
        Ok(hello) => {
            let reply = check(context, &hello);
            sender.queue(Outgoing::Owned(reply_bytes(reply.clone())));
            sender.flush();
            match reply {
                Ok(_) => receive(context, hello.node, &sender, receiver).await,
                Err(words) => {
                    context.metrics.add(Counter::ReplicationRefused, 1);
                    tracing::warn!(node = hello.node, reason = words, "a connection for replication is refused");
                    LinkEnd::Refused(words)
                }
            }
        }
        Err(end) => end,
    };
    sender.close();
    writer.await;
    end
}

/// Whether it may be.
fn check(context: &Context, hello: &Hello) -> Result<HelloReply, String> {
    let version = hello.choose_version()?;
    let (identity, view) = (&context.identity, context.view.borrow());
    let uuid = |bytes: [u8; 16]| uuid::Uuid::from_bytes(bytes);
    if hello.cluster != identity.cluster {
        return Err(format!("this node is of cluster {}, the other one of {}", uuid(identity.cluster), uuid(hello.cluster)));
    }
    let shard = context.mesh.shard();
    if (hello.to_node, hello.to_shard) != (identity.node, shard) {
        return Err(format!("this is shard {shard} of node {}, not shard {} of node {}", identity.node, hello.to_shard, hello.to_node));
    }
    let unknown = || format!("node {} is not known here yet", hello.node);
    let other = view.node(hello.node).ok_or_else(unknown)?;
    if other.registration.incarnation != hello.incarnation {
        let known = uuid(other.registration.incarnation);
        return Err(format!("node {} has incarnation {known}, not {}", hello.node, uuid(hello.incarnation)));
    }
    if hello.node_epoch < other.epoch {
        return Err(format!("node {} is registered with epoch {}, not {}", hello.node, other.epoch, hello.node_epoch));
    }
    let node_epoch = view.node(identity.node).map_or(0, |node| node.epoch);
    let software = concat!("corelane ", env!("CARGO_PKG_VERSION")).into();
    Ok(HelloReply { version, node: identity.node, node_epoch, shards: context.mesh.shards(), software })
}

async fn receive(context: &Rc<Context>, from: u32, sender: &Rc<Sender>, mut receiver: Receiver) -> LinkEnd {
    let outbox = Outbox::new(sender.clone());
    let sending = glommio::spawn_local(outbox.clone().run()).detach();
    // Partitions of which segments came: what of one is not whole goes with the connection.
    let mut fed = HashSet::new();
    let end = loop {
        match receiver.next().await {
            Ok((Frame::Messages(items), payload)) => {
                outbox.heard();
                for (item, payload) in slices(items, &payload) {
                    // Of a partition that is not here (yet): its leader opens the stream again in a while.
                    let Some(replica) = context.replication.replica(&item.partition) else { continue };
                    replica.tell(Input::Message { from, message: item.message, payload, on: outbox.clone() });
                }
                outbox.read_on_after(context.replication.waiting.room()).await;
            }
            Ok((Frame::SegmentPart(part), payload)) => {
                outbox.heard();
                if let Some(replica) = context.replication.replica(&part.partition) {
                    fed.insert(part.partition);
                    replica.tell(Input::Part { from, part, payload, on: outbox.clone() });
                }
                outbox.read_on_after(context.replication.waiting.room()).await;
            }
            Ok((Frame::SegmentMissing(missing), _)) => {
                outbox.heard();
                if let Some(replica) = context.replication.replica(&missing.partition) {
                    replica.tell(Input::Missing { from, base_offset: missing.base_offset, on: outbox.clone() });
                }
            }
            Ok((Frame::Beat, _)) => outbox.heard(),
            Ok(_) => break LinkEnd::Unexpected { expected: "messages" },
            Err(end) => break end,
        }
    };
    outbox.close();
    fed.iter().filter_map(|id| context.replication.replica(id)).for_each(|replica| replica.tell(Input::PartsEnded));
    sending.await;
    end
}
