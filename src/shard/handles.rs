//! Open files, and what was read of them, that are kept for the next reader.

use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

use crate::log::segment::SegmentInfo;
use crate::shard::partition_cell::PartitionCell;
use crate::types::{Offset, TopicPartition};

/// Least recently opened goes first.
pub struct Handles<T> {
    known: HashMap<FileKey, Rc<T>>,
    order: VecDeque<FileKey>,
    most: usize,
}

/// A segment by partition, base offset and rewrite generation.
pub type FileKey = (TopicPartition, Offset, u32);

/// The key of a segment.
pub fn file_key(cell: &PartitionCell, info: &SegmentInfo) -> FileKey {
    (cell.id, info.base_offset, info.rewrite_generation)
}

impl<T> Handles<T> {
    /// At most so many.
    pub fn new(most: usize) -> Handles<T> {
        Handles { known: HashMap::new(), order: VecDeque::new(), most }
    }

    /// One of that name is known.
    pub fn get(&self, key: &FileKey) -> Option<&Rc<T>> {
        self.known.get(key)
    }

    /// Keeps one.
    pub fn insert(&mut self, key: FileKey, value: Rc<T>) {
        if self.known.insert(key, value).is_none() {
            self.order.push_back(key);
        }
        while self.known.len() > self.most {
            let Some(oldest) = self.order.pop_front() else { return };
            self.known.remove(&oldest);
        }
    }

    /// Lets those go that are gone.
    pub fn forget(&mut self, gone: impl Fn(&FileKey) -> bool) {
        self.known.retain(|key, _| !gone(key));
        self.order.retain(|key| !gone(key));
    }
}
