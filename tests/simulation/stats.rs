//! What has happened, so that a run that never came to something does not pass for a good one.

use corelane::replication::NodeId;
use corelane::types::LeaderEpoch;

use crate::disk::PartitionId;

macro_rules! stats {
    ($($name:ident),* $(,)?) => {
        /// Counts.
        #[derive(Clone, Default, Debug)]
        pub struct Stats {
            $(pub $name: u64,)*
            /// Who answered a producer, since somebody looked.
            pub acknowledgements: Vec<(PartitionId, NodeId, LeaderEpoch)>,
        }

        impl Stats {
            pub fn add(&mut self, other: &Stats) {
                $(self.$name += other.$name;)*
            }

            pub fn each(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name),)*]
            }
        }
    };
}

stats!(
    operations,
    faults,
    elections,
    truncations,
    restarts,
    shrinks,
    joins,
    wiped_rejoins,
    lost_leases,
    reassignments,
    segments,
    unclean_elections,
    quarantines,
    crashes,
    torn_groups,
    wipes,
    pauses,
    cuts,
    isolations,
    failed_syncs,
    full_disks,
    slow_disks,
    hand_overs,
    rotten_batches,
    retentions,
    refusals,
    lost_messages,
    doubled_messages,
    acknowledged,
    indeterminate,
    read,
);

/// What a run of many seeds must have come to.
pub const NEEDED: &[&str] = &[
    "elections",
    "truncations",
    "restarts",
    "shrinks",
    "joins",
    "wiped_rejoins",
    "lost_leases",
    "reassignments",
    "segments",
    "quarantines",
    "torn_groups",
    "unclean_elections",
    "hand_overs",
    "failed_syncs",
    "indeterminate",
];
