//! The rules of replication, each of which can be switched off, and the events that a run must have met.

use std::sync::atomic::{AtomicU64, Ordering};

/// A rule. What happens without it is what the checker must find.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rule {
    /// From proposing a join until it is known refused, the watermark waits for the joiner too.
    JoinerBoundsWatermark,
    /// A joiner has everything below the leader's epoch start offset: below it there may be records that were acknowledged before, though the new
    /// leader's watermark does not say so yet.
    JoinerHasEpochStart,
    /// A joiner has everything below the watermark.
    JoinerHasWatermark,
    /// The eligible leaders go in the commit that restores the ISR.
    EligibleEmptied,
    /// A proposal names the incarnation in which the joiner acknowledged, not the one that it has now.
    JoinNamesIncarnation,
    /// A proposal names the registration in which the joiner acknowledged, not the one that it has now.
    JoinNamesNodeEpoch,
    /// A replica that lost its log says so: it leaves the eligible ones and gets another incarnation.
    LossDeclared,
    /// A follower keeps an epoch on disk before it acknowledges anything in it.
    EpochPersisted,
    /// After a restart a follower takes streams of its new registration only.
    StreamNamesNodeEpoch,
    /// A follower refuses an older epoch's leader.
    OldEpochRefused,
    /// On an epoch change a follower cuts back to the common epoch, not to its watermark.
    CutToCommonEpoch,
    /// On an epoch change a follower cuts at all.
    Cut,
    /// An acknowledgement counts only when it is durable.
    AckedWhenDurable,
    /// The watermark moves only while the ISR has `min.insync.replicas`.
    MinInsync,
    /// A shrink counts only once it is committed.
    ShrinkWhenCommitted,
}

/// What a complete run must have met, or it has shown nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(usize)]
pub enum Met {
    /// A record was acknowledged.
    Acknowledged,
    /// A record of an earlier epoch was acknowledged by a later leader.
    AcknowledgedLater,
    /// A leader was elected after the first.
    Elected,
    /// By hand-over.
    HandedOver,
    /// One of the eligible leads.
    EligibleElected,
    /// Nobody may lead.
    NoLeader,
    /// A follower cut records.
    Truncated,
    /// A crash took an unsynced tail.
    TailLost,
    /// The ISR shrank.
    Shrunk,
    /// Below `min.insync.replicas`.
    ShrunkBelowMin,
    /// A follower joined the ISR.
    Joined,
    /// A proposal was refused.
    Refused,
    /// A replica that had been wiped joined the ISR.
    WipedJoined,
    /// The watermark waited for a joiner.
    JoinerWaitedFor,
    /// An old leader was refused by a follower.
    Fenced,
    /// Two nodes led at once, in two epochs.
    TwoLeaders,
    /// A leader learned that it leads no more.
    Resigned,
}

impl Met {
    /// Each with its name as a property.
    pub const ALL: [(Met, &'static str); 17] = [
        (Met::Acknowledged, "a record is acknowledged"),
        (Met::AcknowledgedLater, "a record of an earlier epoch is acknowledged"),
        (Met::Elected, "another leader is elected"),
        (Met::HandedOver, "leadership is handed over"),
        (Met::EligibleElected, "an eligible replica leads"),
        (Met::NoLeader, "nobody may lead"),
        (Met::Truncated, "a follower cuts records"),
        (Met::TailLost, "a crash takes an unsynced tail"),
        (Met::Shrunk, "the ISR shrinks"),
        (Met::ShrunkBelowMin, "the ISR shrinks below the minimum"),
        (Met::Joined, "a follower joins the ISR"),
        (Met::Refused, "a proposal is refused"),
        (Met::WipedJoined, "a wiped replica joins the ISR"),
        (Met::JoinerWaitedFor, "the watermark waits for a joiner"),
        (Met::Fenced, "an old leader is refused"),
        (Met::TwoLeaders, "two lead at once"),
        (Met::Resigned, "a leader resigns"),
    ];
}

/// Counts what was met, over all threads of a run. Beside the states, not in them: a state in which something happened once is no other state.
#[derive(Default)]
pub struct Meetings([AtomicU64; Met::ALL.len()]);

impl Meetings {
    /// It happens.
    pub fn meet(&self, met: Met) {
        self.0[met as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// How often.
    pub fn count(&self, met: Met) -> u64 {
        self.0[met as usize].load(Ordering::Relaxed)
    }
}
