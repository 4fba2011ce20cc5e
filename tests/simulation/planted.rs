//! Rules switched off, to see that the simulator finds each one missing.

use corelane::replication::Rules;

/// What does not hold in a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Planted {
    /// In the machines.
    pub rules: Rules,
    /// In the metadata: eligible leaders stay when the watermark may move again.
    pub keeps_eligible: bool,
    /// In the metadata: a node that comes with another disk is taken for the same.
    pub hides_losses: bool,
    /// In the metadata: a leader that restarts goes on in its epoch.
    pub epoch_goes_on: bool,
}

/// A bug and its name.
pub struct Bug {
    pub name: &'static str,
    pub planted: fn(&mut Planted),
}

/// Every rule of the replication design, switched off. Where a second rule would cover up, it is off too, and says so.
pub const BUGS: &[Bug] = &[
    Bug { name: "joiner_does_not_bound_the_watermark", planted: |p| p.rules.joiner_bounds_watermark = false },
    Bug { name: "shrink_counts_when_proposed", planted: |p| p.rules.shrink_waits_for_commit = false },
    Bug { name: "watermark_moves_with_too_few_in_sync", planted: |p| p.rules.min_insync_for_watermark = false },
    Bug { name: "watermark_moves_below_the_epochs_start", planted: |p| p.rules.watermark_from_epoch_start = false },
    Bug { name: "joins_below_the_epochs_start", planted: |p| p.rules.join_from_epoch_start = false },
    Bug {
        // The epoch's start is below the watermark but for the beginning of an epoch.
        name: "joins_below_the_watermark",
        planted: |p| p.rules.join_from_watermark = false,
    },
    Bug { name: "acknowledges_without_a_lease", planted: |p| p.rules.lease = false },
    Bug { name: "leader_counts_what_is_not_durable", planted: |p| p.rules.leader_durable = false },
    Bug {
        // The metadata gives a new epoch at each registration; the leader's own check is the second of two.
        name: "an_epoch_is_led_twice",
        planted: |p| (p.rules.epoch_led_once, p.epoch_goes_on) = (false, true),
    },
    Bug { name: "cuts_to_the_watermark", planted: |p| p.rules.truncation_by_epoch = false },
    Bug { name: "answers_before_the_epoch_is_journaled", planted: |p| p.rules.epoch_journaled_first = false },
    Bug { name: "answers_with_older_groups_in_flight", planted: |p| p.rules.drains_before_report = false },
    Bug { name: "reports_what_is_not_durable", planted: |p| p.rules.reports_durable = false },
    Bug {
        // The registration covers up for it after a restart.
        name: "follows_an_epoch_that_is_over",
        planted: |p| (p.rules.fencing, p.rules.node_epoch) = (false, false),
    },
    Bug {
        // Only a leader that lost its disk unseen asks for such a cut.
        name: "cuts_below_the_watermark",
        planted: |p| (p.rules.no_cut_below_watermark, p.hides_losses) = (false, true),
    },
    Bug {
        // A cut in the wrong place is what it is there for; the running hash would see the same.
        name: "takes_records_that_do_not_follow",
        planted: |p| (p.rules.previous_epoch, p.rules.running_hash, p.rules.truncation_by_epoch) = (false, false, false),
    },
    Bug { name: "eligible_leaders_stay", planted: |p| p.keeps_eligible = true },
    Bug { name: "a_wiped_node_is_taken_for_the_same", planted: |p| p.hides_losses = true },
];

/// Rules whose absence the simulator does not find yet: other rules cover up for them in every history that it comes to. Unit tests of the machines hold them
/// (`another_life_of_a_replica_is_another_replica`, `streams_of_other_times_are_refused`). `cargo sim -- --bug NAME` tries.
pub const UNSEEN: &[Bug] = &[
    Bug { name: "acknowledgements_of_other_streams_count", planted: |p| p.rules.ack_names_stream = false },
    Bug { name: "takes_streams_of_an_earlier_registration", planted: |p| p.rules.node_epoch = false },
];
