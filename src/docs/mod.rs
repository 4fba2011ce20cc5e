//! The long answers: how data flows, what survives what, what the files hold, and why it was decided so.

#[doc = include_str!("data_path.md")]
pub mod data_path {}

#[doc = include_str!("durability.md")]
pub mod durability {}

#[doc = include_str!("on_disk.md")]
pub mod on_disk {}

#[doc = include_str!("replication.md")]
pub mod replication {}

#[doc = include_str!("operation.md")]
pub mod operation {}

#[doc = include_str!("adoption.md")]
pub mod adoption {}

#[doc = include_str!("decisions/README.md")]
pub mod decisions {
    #[doc = include_str!("decisions/0001-checksums.md")]
    pub mod checksums {}

    #[doc = include_str!("decisions/0002-journal-groups.md")]
    pub mod journal_groups {}

    #[doc = include_str!("decisions/0003-one-profile.md")]
    pub mod one_profile {}

    #[doc = include_str!("decisions/0004-what-a-group-claims.md")]
    pub mod what_a_group_claims {}

    #[doc = include_str!("decisions/0005-what-an-acknowledgement-waits-for.md")]
    pub mod what_an_acknowledgement_waits_for {}

    #[doc = include_str!("decisions/0006-how-a-log-is-cleaned.md")]
    pub mod how_a_log_is_cleaned {}

    #[doc = include_str!("decisions/0007-consensus-and-its-files.md")]
    pub mod consensus_and_its_files {}

    #[doc = include_str!("decisions/0008-how-nodes-act-together.md")]
    pub mod how_nodes_act_together {}
}
