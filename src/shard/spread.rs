//! Questions about partitions anywhere on the node: each shard gets those about its own, all at once, and the answers are put into the order of the questions.

use std::rc::Rc;

use bytes::Bytes;
use futures_util::future::join_all;

use crate::metrics::Counter;
use crate::request::{
    DeleteRecords, DeleteRecordsResult, EpochEndResult, EpochQuestion, ListOffset, ListOffsetResult, Refusal, Request, Response,
};
use crate::shard::context::Context;
use crate::shard::mesh::shard_gone;
use crate::types::TopicPartition;

/// A question about one partition.
pub trait Question: Copy {
    /// What is answered.
    type Answer;

    /// Which partition.
    fn partition(&self) -> TopicPartition;

    /// That it is refused.
    fn refused(&self, refusal: Refusal) -> Self::Answer;

    /// A request of several.
    fn request(questions: Vec<Self>) -> Request;

    /// The answers in the response to such a request; `None` where it is another one.
    fn answers(response: Response) -> Option<Vec<Self::Answer>>;
}

macro_rules! questions {
    ($($question:ident, $answer:ident, $request:ident, $response:ident;)*) => {$(
        impl Question for $question {
            type Answer = $answer;

            fn partition(&self) -> TopicPartition {
                self.partition
            }

            fn refused(&self, refusal: Refusal) -> $answer {
                $answer { partition: self.partition, outcome: Err(refusal) }
            }

            fn request(questions: Vec<$question>) -> Request {
                Request::$request(questions)
            }

            fn answers(response: Response) -> Option<Vec<$answer>> {
                if let Response::$response(answers) = response { Some(answers) } else { None }
            }
        }
    )*};
}

questions! {
    ListOffset, ListOffsetResult, ListOffsets, ListOffsets;
    DeleteRecords, DeleteRecordsResult, DeleteRecords, RecordsDeleted;
    EpochQuestion, EpochEndResult, EpochEnds, EpochEnds;
}

/// Answers questions; `mine` those about partitions of this shard, in their order.
pub async fn spread<Q: Question>(context: &Rc<Context>, questions: &[Q], mine: impl AsyncFn(Vec<Q>) -> Vec<Q::Answer>) -> Vec<Q::Answer> {
    let mut by_shard: Vec<(Vec<usize>, Vec<Q>)> = (0..context.mesh.shards()).map(|_| Default::default()).collect();
    for (place, question) in questions.iter().enumerate() {
        let (places, part) = &mut by_shard[context.owner(&question.partition()) as usize];
        places.push(place);
        part.push(*question);
    }
    let mine = &mine;
    let parts = (0..).zip(by_shard).filter(|(_, (places, _))| !places.is_empty()).map(|(shard, (places, part))| async move {
        let answers = match shard == context.mesh.shard() {
            true => mine(part).await,
            false => ask(context, shard, part).await,
        };
        (places, answers)
    });
    let mut answers: Vec<_> = questions.iter().map(|question| question.refused(shard_gone())).collect();
    for (places, part) in join_all(parts).await {
        for (place, answer) in places.into_iter().zip(part) {
            answers[place] = answer;
        }
    }
    answers
}

/// Nothing, where the shard has gone.
async fn ask<Q: Question>(context: &Rc<Context>, shard: u32, part: Vec<Q>) -> Vec<Q::Answer> {
    context.metrics.add(Counter::MeshSent, 1);
    let reply = context.mesh.send(shard, Q::request(part), Bytes::new()).await;
    reply.recv().await.ok().and_then(|reply| Q::answers(reply.response)).unwrap_or_default()
}
