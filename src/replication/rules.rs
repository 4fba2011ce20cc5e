//! Switches that exist for tests only.

/// Which rules hold: all. A test that switches one off shows that the checks would find it missing.
#[doc(hidden)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rules {
    /// Leader: a replica that is proposed bounds the watermark.
    pub joiner_bounds_watermark: bool,
    /// Leader: a shrink counts when it is committed.
    pub shrink_waits_for_commit: bool,
    /// Leader: the watermark moves only with `min.insync.replicas` in sync.
    pub min_insync_for_watermark: bool,
    /// Leader: the watermark moves only past the epoch's start.
    pub watermark_from_epoch_start: bool,
    /// Leader: a replica joins at or past the epoch's start.
    pub join_from_epoch_start: bool,
    /// Leader: a replica joins at or past the watermark.
    pub join_from_watermark: bool,
    /// Leader: an acknowledgement of another stream counts for nothing.
    pub ack_names_stream: bool,
    /// Leader: nothing is committed without a lease.
    pub lease: bool,
    /// Leader: its own records count when they are durable.
    pub leader_durable: bool,
    /// Leader: an epoch is led once.
    pub epoch_led_once: bool,
    /// Leader: a follower is cut back to the common epoch, not to its watermark.
    pub truncation_by_epoch: bool,
    /// Follower: an epoch is journaled before anything in it is answered.
    pub epoch_journaled_first: bool,
    /// Follower: what is in flight of older epochs is waited for.
    pub drains_before_report: bool,
    /// Follower: reports what is durable, not what it has.
    pub reports_durable: bool,
    /// Follower: takes streams for its present registration only.
    pub node_epoch: bool,
    /// Follower: takes no stream of an epoch that is over.
    pub fencing: bool,
    /// Follower: cuts nothing below its watermark.
    pub no_cut_below_watermark: bool,
    /// Follower: records must follow its last one's epoch.
    pub previous_epoch: bool,
    /// Follower: records must follow its running hash.
    pub running_hash: bool,
}

impl Default for Rules {
    fn default() -> Rules {
        Rules {
            joiner_bounds_watermark: true,
            shrink_waits_for_commit: true,
            min_insync_for_watermark: true,
            watermark_from_epoch_start: true,
            join_from_epoch_start: true,
            join_from_watermark: true,
            ack_names_stream: true,
            lease: true,
            leader_durable: true,
            epoch_led_once: true,
            truncation_by_epoch: true,
            epoch_journaled_first: true,
            drains_before_report: true,
            reports_durable: true,
            node_epoch: true,
            fencing: true,
            no_cut_below_watermark: true,
            previous_epoch: true,
            running_hash: true,
        }
    }
}
