//! What a coordinator wants done.

use super::records::LogRecord;
use crate::request::group::{GroupAnswer, GroupError, JoinRefused, TopicOutcome};

/// A request that waits for its answer: the shell's own number for it, given back with the answer.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Waiter(pub u64);

/// An append that is on its way; rises by one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Token(pub u64);

/// What the shell has to do, in this order.
#[derive(Clone, PartialEq, Debug)]
pub enum Effect {
    /// Append these records to the partition as one batch and report by [`super::Coordinator::handle_appended`] when they are durable.
    Append {
        /// For the report.
        token: Token,
        /// In this order.
        records: Vec<LogRecord>,
    },
    /// Answer a request.
    Answer {
        /// Which.
        waiter: Waiter,
        /// With what.
        answer: GroupAnswer,
    },
}

impl GroupAnswer {
    /// The same answer where the log did not take what it relies on.
    pub(super) fn failed(self, group: GroupError, commit: GroupError) -> GroupAnswer {
        match self {
            GroupAnswer::Join(_) => GroupAnswer::Join(Err(JoinRefused { error: group, member_id: "".into() })),
            GroupAnswer::Sync(_) => GroupAnswer::Sync(Err(group)),
            GroupAnswer::Leave(_) => GroupAnswer::Leave(Err(group)),
            GroupAnswer::Commit(topics) => GroupAnswer::Commit(fail_each(topics, commit)),
            GroupAnswer::DeleteGroups(groups) => {
                GroupAnswer::DeleteGroups(groups.into_iter().map(|(id, outcome)| (id, outcome.and(Err(group)))).collect())
            }
            GroupAnswer::DeleteOffsets(outcome) => GroupAnswer::DeleteOffsets(outcome.map(|topics| fail_each(topics, group))),
            // These rely on nothing that is on its way.
            answer @ (GroupAnswer::Heartbeat(_) | GroupAnswer::FetchOffsets(_) | GroupAnswer::Describe(_) | GroupAnswer::List(_)) => answer,
        }
    }
}

/// Every partition that was well has this error now.
fn fail_each(mut topics: Vec<TopicOutcome>, error: GroupError) -> Vec<TopicOutcome> {
    for (_, outcome) in topics.iter_mut().flat_map(|topic| &mut topic.partitions) {
        *outcome = outcome.and(Err(error));
    }
    topics
}
