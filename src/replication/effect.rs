//! What a machine asks of its shell, and what of a log a machine has to know.

use crate::replication::epochs::EpochTable;
use crate::replication::error::Refusal;
use crate::replication::message::Message;
use crate::replication::record::{IsrChange, NodeId};
use crate::types::{LeaderEpoch, Offset};

/// Milliseconds of a clock that never goes back; where it begins does not matter.
pub type Millis = u64;

/// To be carried out in the order given.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Send this to a node. It may get lost.
    Send {
        /// To whom.
        to: NodeId,
        /// What.
        message: Message,
    },
    /// Journal the promise to keep to this epoch, sync it, then call `handle_epoch_journaled`. It is no entry of the epoch table ([`EpochTable`]), but for a
    /// leader, which gives its start.
    JournalEpoch {
        /// Which.
        epoch: LeaderEpoch,
        /// Where it begins, said by the leader of it.
        start: Option<Offset>,
    },
    /// Append the records of the message that is being handled (APPEND, or a SEGMENT to adopt), then call `handle_durable` when they are synced.
    Append {
        /// First offset.
        base_offset: Offset,
        /// One past the last one.
        end_offset: Offset,
        /// The first batch opens a segment.
        opens_segment: bool,
    },
    /// Cut the log back, then call `handle_truncated` when that is durable.
    Truncate {
        /// One past the last record that stays.
        to: Offset,
        /// An unclean election allows it to go below the watermark, which goes back with it.
        unclean: bool,
    },
    /// Drop the whole log and begin an empty one here, then call `handle_truncated` when that is durable.
    Restart {
        /// Its start and end.
        at: Offset,
        /// Running hash there, by the leader.
        hash_before: u64,
    },
    /// The leader's log begins here now: what is before may go.
    LogStart {
        /// First readable offset, not past the watermark.
        to: Offset,
    },
    /// The watermark is here now: readers see more. Of a leader it also says that whoever waits for an offset below is answered.
    Watermark {
        /// One past the last committed record.
        to: Offset,
    },
    /// Propose this to consensus; a refusal goes to `handle_proposal_refused`, a new record to `handle_record`.
    ProposeIsr(IsrChange),
    /// Something was refused: to be logged once and counted.
    Refuse {
        /// Whose message it was.
        from: NodeId,
        /// Why.
        refusal: Refusal,
    },
}

/// A log as a machine begins with it, or leaves it to the next one: after a start, or when the role changes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LogState {
    /// First offset of the first batch that is there.
    pub log_start: Offset,
    /// One past the last record.
    pub log_end: Offset,
    /// One past the last record that is synced. After a start that is the log's end.
    pub durable_end: Offset,
    /// One past the last record known to be committed.
    pub watermark: Offset,
    /// Which epochs the records are of.
    pub epochs: EpochTable,
    /// The highest epoch that was journaled: nothing of an earlier one is taken any more, and this one is never led again. -1 before the first.
    pub promised: LeaderEpoch,
    /// Running hash at the log's end; `None` where it is not known (a log that begins anew).
    pub running_hash: Option<u64>,
}

impl LogState {
    /// Of a replica that was just made.
    pub fn empty() -> LogState {
        LogState { promised: -1, running_hash: Some(0), ..LogState::default() }
    }

    /// # Panics
    /// When the ends are not in order.
    pub(crate) fn assert_order(&self) {
        let ends = [self.log_start, self.watermark, self.durable_end, self.log_end];
        assert!(
            self.watermark <= self.durable_end && self.durable_end <= self.log_end && self.log_start <= self.log_end,
            "ends in order: {ends:?}"
        );
    }
}
