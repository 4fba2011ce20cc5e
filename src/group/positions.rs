//! Committed positions of one group: what is durable, and how many changes of each are on their way.

use crate::request::group::OffsetCommit;
use std::collections::BTreeMap;
use std::sync::Arc;

/// One partition.
#[derive(Debug, Default)]
pub(super) struct Position {
    /// What the log holds for sure.
    pub durable: Option<Arc<OffsetCommit>>,
    /// Commits and tombstones on their way.
    pub in_flight: usize,
}

/// By topic and partition. A position is there while it is durable or a change of it is on its way.
#[derive(Debug, Default)]
pub(super) struct Positions {
    topics: BTreeMap<Arc<str>, BTreeMap<i32, Position>>,
    len: usize,
}

impl Positions {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn get(&self, topic: &str, partition: i32) -> Option<&Position> {
        self.topics.get(topic)?.get(&partition)
    }

    pub fn topics(&self) -> impl Iterator<Item = (&Arc<str>, &BTreeMap<i32, Position>)> {
        self.topics.iter()
    }

    /// Every position, by topic and partition.
    pub fn iter(&self) -> impl Iterator<Item = (&Arc<str>, i32, &Position)> {
        self.topics.iter().flat_map(|(topic, partitions)| partitions.iter().map(move |(partition, position)| (topic, *partition, position)))
    }

    /// A change is on its way.
    pub fn begin(&mut self, topic: &Arc<str>, partition: i32) {
        self.slot(topic, partition).in_flight += 1;
    }

    /// A change is durable.
    pub fn apply(&mut self, topic: &Arc<str>, partition: i32, commit: Option<Arc<OffsetCommit>>) {
        self.slot(topic, partition).durable = commit;
        self.drop_if_nothing(topic, partition);
    }

    /// A change that was on its way has arrived or failed.
    pub fn end(&mut self, topic: &str, partition: i32) {
        if let Some(position) = self.topics.get_mut(topic).and_then(|partitions| partitions.get_mut(&partition)) {
            position.in_flight = position.in_flight.checked_sub(1).expect("every end has its beginning");
        }
        self.drop_if_nothing(topic, partition);
    }

    fn slot(&mut self, topic: &Arc<str>, partition: i32) -> &mut Position {
        if !self.topics.contains_key(topic) {
            self.topics.insert(topic.clone(), BTreeMap::new());
        }
        let partitions = self.topics.get_mut(topic).expect("inserted above");
        let len = &mut self.len;
        partitions.entry(partition).or_insert_with(|| {
            *len += 1;
            Position::default()
        })
    }

    fn drop_if_nothing(&mut self, topic: &str, partition: i32) {
        let Some(partitions) = self.topics.get_mut(topic) else { return };
        if partitions.get(&partition).is_some_and(|position| position.durable.is_none() && position.in_flight == 0) {
            partitions.remove(&partition);
            self.len -= 1;
            if partitions.is_empty() {
                self.topics.remove(topic);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_there_while_anything_is_known_of_it() {
        let topic: Arc<str> = "t".into();
        let commit = OffsetCommit { offset: 1, leader_epoch: None, metadata: "".into(), commit_timestamp: 0, expire_timestamp: None };
        let mut positions = Positions::default();
        positions.begin(&topic, 0);
        positions.begin(&topic, 0);
        assert_eq!(positions.len(), 1);
        positions.end("t", 0);
        positions.apply(&topic, 0, Some(Arc::new(commit)));
        positions.end("t", 0);
        assert_eq!((positions.len(), positions.iter().count()), (1, 1));
        positions.apply(&topic, 0, None);
        assert!(positions.is_empty() && positions.topics().next().is_none());
    }
}
