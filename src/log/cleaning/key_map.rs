//! The newest offset of each key, in memory of fixed size.

use std::hash::Hasher;

use siphasher::sip128::{Hasher128, SipHasher13};

use crate::types::Offset;

/// Of each key the map keeps 128 bits of a keyed hash and an offset: two keys that are taken for one would lose the older one's record. By chance that takes some 10^19
/// keys, and without the map's own key nobody can find two.
#[derive(Clone, Copy, Debug)]
struct Slot {
    hash: [u64; 2],
    offset: Offset,
}

const FREE: Slot = Slot { hash: [0; 2], offset: -1 };

/// Bytes of a slot.
const SLOT: usize = size_of::<Slot>();

/// A hash table with open addresses: no allocation after it is made.
#[derive(Debug)]
pub struct KeyMap {
    slots: Vec<Slot>,
    len: usize,
    seed: [u8; 16],
}

impl KeyMap {
    /// A map in at most `bytes` bytes. `seed` is random.
    ///
    /// # Panics
    /// When there is no room for any key.
    pub fn new(bytes: usize, seed: [u8; 16]) -> KeyMap {
        let slots = bytes / SLOT;
        assert!(slots >= 4, "a map of {bytes} bytes holds no keys");
        KeyMap { slots: vec![FREE; slots], len: 0, seed }
    }

    /// Keys in it.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Keys that it may hold: three quarters of the slots, so that a free one is never far.
    pub fn capacity(&self) -> usize {
        self.slots.len() / 4 * 3
    }

    /// Notes that `key` has a record at `offset`. Later offsets come later.
    ///
    /// # Panics
    /// When the map is full: the caller asks before.
    pub fn note(&mut self, key: &[u8], offset: Offset) {
        let hash = self.hash(key);
        let at = self.find(hash);
        let before = self.slots[at].offset;
        if before == FREE.offset {
            assert!(self.len < self.slots.len() - 1, "the map has room for the keys of a batch");
            self.len += 1;
        }
        self.slots[at] = Slot { hash, offset: offset.max(before) };
    }

    /// The newest offset of a key, if it was noted.
    pub fn newest(&self, key: &[u8]) -> Option<Offset> {
        let slot = &self.slots[self.find(self.hash(key))];
        (slot.offset != FREE.offset).then_some(slot.offset)
    }

    /// The slot that has the hash, or the free one where it would be.
    fn find(&self, hash: [u64; 2]) -> usize {
        let mut at = (hash[0] % self.slots.len() as u64) as usize;
        while self.slots[at].offset != FREE.offset && self.slots[at].hash != hash {
            at = (at + 1) % self.slots.len();
        }
        at
    }

    fn hash(&self, key: &[u8]) -> [u64; 2] {
        let mut hasher = SipHasher13::new_with_key(&self.seed);
        hasher.write(key);
        let hash = hasher.finish128();
        [hash.h1, hash.h2]
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn the_newest_offset_of_every_key_up_to_the_last_that_fits() {
        let mut map = KeyMap::new(100 * SLOT, [7; 16]);
        assert_eq!((map.capacity(), map.is_empty()), (75, true));
        let mut model = HashMap::new();
        for offset in 0..300_i64 {
            let key = format!("key {}", (offset * offset) % 75);
            map.note(key.as_bytes(), offset);
            model.insert(key, offset);
        }
        assert_eq!(map.len(), model.len());
        for (key, offset) in &model {
            assert_eq!(map.newest(key.as_bytes()), Some(*offset));
        }
        assert_eq!(map.newest(b"another"), None);
        assert_eq!(map.newest(b""), None);
        map.note(b"", 4);
        map.note(b"", 3);
        assert_eq!(map.newest(b""), Some(4), "an empty key is a key");
    }

    #[test]
    fn another_seed_is_another_order() {
        let (one, two) = (KeyMap::new(1000, [1; 16]), KeyMap::new(1000, [2; 16]));
        assert_ne!(one.hash(b"key"), two.hash(b"key"));
        assert_eq!(one.hash(b"key"), KeyMap::new(5000, [1; 16]).hash(b"key"));
    }
}
