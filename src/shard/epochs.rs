//! Where leader epochs end: by that a client that was away sees whether records that it has read were lost with an unclean stop.

use std::rc::Rc;

use crate::request::{Code, EpochEnd, EpochEndResult, EpochQuestion, Refusal};
use crate::shard::context::Context;
use crate::shard::spread::spread;

/// Answers questions about partitions anywhere on this node.
pub async fn epoch_ends(context: &Rc<Context>, questions: &[EpochQuestion]) -> Vec<EpochEndResult> {
    spread(context, questions, async |part| part.iter().map(|question| mine(context, question)).collect()).await
}

fn mine(context: &Context, question: &EpochQuestion) -> EpochEndResult {
    EpochEndResult { partition: question.partition, outcome: answer(context, question) }
}

fn answer(context: &Context, question: &EpochQuestion) -> Result<Option<EpochEnd>, Refusal> {
    let cell = context.store.partition(&question.partition).ok_or_else(|| context.unknown(&question.partition))?;
    if let Some(refusal) = cell.not_served() {
        return Err(refusal);
    }
    let machine = cell.machine.borrow();
    let (present, words) = (machine.epoch(), |known| format!("leader epoch {known}, the current one is {}", machine.epoch()));
    match question.current {
        Some(known) if known < present => Err(cell.refusal(Code::FencedLeaderEpoch, words(known))),
        Some(known) if known > present => Err(cell.refusal(Code::UnknownLeaderEpoch, words(known))),
        _ => Ok(machine.end_of_epoch(question.epoch).map(|(epoch, end_offset)| EpochEnd { epoch, end_offset })),
    }
}
