//! Which node this is: what its data directory says, or what a first start makes of it.

use crate::control::termination::Termination;
use crate::log::file_header::MetaSlot;
use crate::log::identity;
use crate::server::membership::{Past, cluster_to_join};
use crate::server::settings::{ClusterSettings, ServeSettings};
use crate::server::start::{ServeError, store_error};
use crate::shard::blocking_files::BlockingFiles;

/// The identity of the node, durable. `None`: a signal came while the cluster that is to be joined was asked for its id.
///
/// # Errors
/// The settings are of another node than the data directory, or it can't be read.
pub fn open(
    files: &mut BlockingFiles,
    settings: &ServeSettings,
    past: Past,
    termination: &mut Termination,
) -> Result<Option<MetaSlot>, ServeError> {
    let written = identity::read(files).map_err(store_error)?;
    match (written, past) {
        (Some(meta), Past::Alone | Past::Member | Past::Bereft) => {
            check(&meta, settings, past, termination).map(|checked| checked.map(|()| meta))
        }
        (None, Past::Alone | Past::Member | Past::Bereft) => {
            let text = format!(
                "the data directory {} has a store, but its file \"meta\" is lost: no node is known to it",
                settings.data.display()
            );
            Err(ServeError::Store(text))
        }
        (before, Past::Unborn) => {
            let cluster = match settings.cluster.as_ref().filter(|cluster| !cluster.join.is_empty()) {
                None => *uuid::Uuid::new_v4().as_bytes(),
                Some(_) if settings.node_id.is_none() => {
                    return Err(ServeError::Store(
                        "a node that joins a cluster needs an id that no other node of it has: say --node-id N".into(),
                    ));
                }
                Some(cluster) => match termination.during(cluster_to_join(cluster)) {
                    Some(found) => found?,
                    None => return Ok(None),
                },
            };
            let meta = MetaSlot {
                oldest_reader: 1,
                node_id: settings.node_id.unwrap_or(0),
                cluster,
                incarnation: *uuid::Uuid::new_v4().as_bytes(),
                sequence: 0,
                clean_shutdown: false,
            };
            identity::write(files, before.as_ref(), &meta).map(Some).map_err(store_error)
        }
    }
}

/// A store knows which node it is, and whether it is one of a cluster's.
fn check(meta: &MetaSlot, settings: &ServeSettings, past: Past, termination: &mut Termination) -> Result<Option<()>, ServeError> {
    let refused = |text: String| Err(ServeError::Store(format!("the data directory {} {text}", settings.data.display())));
    if let Some(id) = settings.node_id.filter(|id| *id != meta.node_id) {
        return refused(format!("is of node {}, not of node {id}: a node keeps its id", meta.node_id));
    }
    match &settings.cluster {
        None if past == Past::Member => refused("is of a node of a cluster: say with --cluster-listen where other nodes find it".into()),
        Some(cluster) if past == Past::Alone && !cluster.join.is_empty() => {
            let Some(theirs) = termination.during(cluster_to_join(cluster)) else { return Ok(None) };
            refuse_other_cluster(meta, theirs?, cluster)
        }
        _ => Ok(Some(())),
    }
}

/// A node that was alone has topics of its own, and may have acknowledged records: those of another cluster can't come in their place.
fn refuse_other_cluster(meta: &MetaSlot, theirs: [u8; 16], cluster: &ClusterSettings) -> Result<Option<()>, ServeError> {
    let [ours, theirs] = [meta.cluster, theirs].map(uuid::Uuid::from_bytes);
    Err(ServeError::Store(format!(
        "this node is of cluster {ours} and has a catalogue of its own, so it can't join cluster {theirs} at {}: use an empty data directory, \
         or start it without --join and let empty nodes join it",
        cluster.join.join(", ")
    )))
}
