//! A connection that this shard keeps to a shard of another node, to ship what it leads.
//!
//! It is made again whenever it ends, with growing pauses. Those partitions whose follower is there hear when it comes about and when it ends.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::net::{SocketAddr, ToSocketAddrs};
use std::rc::Rc;
use std::time::Duration;

use futures_util::AsyncReadExt;
use glommio::net::TcpStream;

use crate::cluster::node::Endpoint;
use crate::limits::{LINK_CONNECT_MS, LINK_PAUSE_MOST_MS, LINK_PAUSE_MS};
use crate::replication::NodeId;
use crate::replication::codec::{Frame, Hello, VERSION_MAX, VERSION_MIN};
use crate::shard::context::Context;
use crate::shard::event::Event;
use crate::shard::net::Sender;
use crate::shard::replication::connection::{LinkEnd, Receiver, await_reply, introduce, slices};
use crate::shard::replication::outbox::Outbox;
use crate::shard::replication::replica::Input;
use crate::types::TopicPartition;

/// To one shard of one node, in one registration of it.
pub struct Link {
    to: (NodeId, u32),
    /// The registration; another one gets another link.
    pub node_epoch: u64,
    endpoint: Endpoint,
    partitions: RefCell<HashSet<TopicPartition>>,
    outbox: RefCell<Option<Rc<Outbox>>>,
    is_over: Cell<bool>,
    over: Event,
}

impl Link {
    /// A link whose task is [`Link::run`].
    pub fn new(to: (NodeId, u32), node_epoch: u64, endpoint: Endpoint) -> Rc<Link> {
        Rc::new(Link {
            to,
            node_epoch,
            endpoint,
            partitions: RefCell::default(),
            outbox: RefCell::default(),
            is_over: Cell::new(false),
            over: Event::default(),
        })
    }

    /// The partitions that are shipped on it. Those that are new hear that it is there, if it is.
    pub fn set_partitions(&self, context: &Context, partitions: HashSet<TopicPartition>) {
        let before = self.partitions.replace(partitions);
        let outbox = self.outbox.borrow();
        let Some(outbox) = outbox.as_ref() else { return };
        for id in self.partitions.borrow().iter().filter(|id| !before.contains(id)) {
            tell(context, id, Input::Connected(self.to.0, outbox.clone()));
        }
    }

    /// Nothing is shipped on it any more.
    pub fn end(&self) {
        self.is_over.set(true);
        self.over.notify();
        if let Some(outbox) = self.outbox.borrow().as_ref() {
            outbox.close();
        }
    }

    /// The task.
    pub async fn run(self: Rc<Link>, context: Rc<Context>) {
        let mut pause = LINK_PAUSE_MS;
        while !self.is_over.get() {
            let connected = self.connect(&context).await;
            match connected {
                Ok((outbox, receiver)) => {
                    pause = LINK_PAUSE_MS;
                    let end = self.serve(&context, &outbox, receiver).await;
                    outbox.close();
                    tracing::info!(node = self.to.0, shard = self.to.1, reason = %end, "the connection for replication ended");
                }
                Err(reason) => tracing::debug!(node = self.to.0, shard = self.to.1, %reason, "no connection for replication"),
            }
            let ticket = self.over.ticket();
            if !self.is_over.get() {
                self.over.wait_until(ticket, std::time::Instant::now() + Duration::from_millis(pause)).await;
                pause = (2 * pause).min(LINK_PAUSE_MOST_MS);
            }
        }
    }

    async fn connect(&self, context: &Rc<Context>) -> Result<(Rc<Outbox>, Receiver), LinkEnd> {
        let address = self.resolve().await?;
        let patience = Duration::from_millis(LINK_CONNECT_MS);
        let connecting = TcpStream::connect_timeout(address, patience).await;
        let mut stream = connecting.map_err(std::io::Error::from)?;
        stream.set_nodelay(true).map_err(std::io::Error::from)?;
        let view = context.view.borrow().clone();
        let identity = &context.identity;
        let hello = Hello {
            version_min: VERSION_MIN,
            version_max: VERSION_MAX,
            cluster: identity.cluster,
            node: identity.node,
            incarnation: view.node(identity.node).map_or([0; 16], |node| node.registration.incarnation),
            node_epoch: view.node(identity.node).map_or(0, |node| node.epoch),
            shard: context.mesh.shard(),
            to_node: self.to.0,
            to_shard: self.to.1,
            software: concat!("corelane ", env!("CARGO_PKG_VERSION")).into(),
        };
        introduce(&mut stream, &hello).await?;
        let sender = Sender::new(&stream, Rc::default(), context.metrics.clone());
        let (read, write) = stream.split();
        glommio::spawn_local(sender.clone().run(write)).detach();
        let mut receiver = Receiver::new(read);
        let outbox = Outbox::new(sender);
        let replied = glommio::timer::timeout(patience, async { Ok(await_reply(&mut receiver).await) }).await;
        match replied {
            Ok(Ok(_)) => Ok((outbox, receiver)),
            Ok(Err(end)) => {
                outbox.close();
                Err(end)
            }
            Err::<_, glommio::GlommioError<()>>(_) => {
                outbox.close();
                Err(LinkEnd::Unexpected { expected: "an answer to the hello in time" })
            }
        }
    }

    /// A name is looked up on a thread of its own: it may take long.
    async fn resolve(&self) -> Result<SocketAddr, LinkEnd> {
        let Endpoint { host, port } = self.endpoint.clone();
        if let Ok(address) = host.parse() {
            return Ok(SocketAddr::new(address, port));
        }
        let found =
            glommio::executor().spawn_blocking(move || (host.as_str(), port).to_socket_addrs().map(|mut found| found.next())).await?;
        found.ok_or(LinkEnd::Unexpected { expected: "an address for the host" })
    }

    async fn serve(&self, context: &Rc<Context>, outbox: &Rc<Outbox>, mut receiver: Receiver) -> LinkEnd {
        *self.outbox.borrow_mut() = Some(outbox.clone());
        if self.is_over.get() {
            // While it came about; whoever ended the link had nothing to close.
            outbox.close();
        }
        let sending = glommio::spawn_local(outbox.clone().run()).detach();
        let partitions: Vec<_> = self.partitions.borrow().iter().copied().collect();
        partitions.iter().for_each(|id| tell(context, id, Input::Connected(self.to.0, outbox.clone())));
        let end = loop {
            match receiver.next().await {
                Ok((Frame::Messages(items), payload)) => {
                    outbox.heard();
                    for (item, payload) in slices(items, &payload) {
                        let input = Input::Message { from: self.to.0, message: item.message, payload, on: outbox.clone() };
                        tell(context, &item.partition, input);
                    }
                    outbox.read_on_after(context.replication.waiting.room()).await;
                }
                Ok((Frame::SegmentWanted(wanted), _)) => {
                    outbox.heard();
                    tell(context, &wanted.partition, Input::Wanted { from: self.to.0, wanted, on: outbox.clone() });
                }
                Ok((Frame::Beat, _)) => outbox.heard(),
                Ok(_) => break LinkEnd::Unexpected { expected: "messages" },
                Err(end) => break end,
            }
        };
        outbox.close();
        *self.outbox.borrow_mut() = None;
        sending.await;
        let partitions: Vec<_> = self.partitions.borrow().iter().copied().collect();
        partitions.iter().for_each(|id| tell(context, id, Input::Disconnected(self.to.0, outbox.clone())));
        end
    }
}

fn tell(context: &Context, id: &TopicPartition, input: Input) {
    if let Some(replica) = context.replication.replica(id) {
        replica.tell(input);
    }
}
