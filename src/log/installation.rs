//! The journal entry with which a file that was received whole from the leader becomes a sealed segment at the log's end.
//!
//! Log and index are complete and synced before the entry is written, under temporary names; those are durable too. After the entry they get their own names. So a crash before the entry
//! leaves files that mean nothing, and after it the next start finishes the renaming.

use crate::log::fields::{i32_at, i64_at, put, u32_at, u64_at};
use crate::log::journal::{EntryHeader, PayloadError, expect_len};
use crate::log::leader_epochs::EpochStart;
use crate::log::replacement::{REPLACEMENT_LEN, Replacement};
use crate::log::segment::SegmentInfo;
use crate::log::segment_check::CheckedSegment;

/// Length of an install entry's payload before its epochs.
const FIXED_LEN: usize = REPLACEMENT_LEN + 32;
/// Length of an epoch in it.
const EPOCH_LEN: usize = 12;
/// Most epochs that a shipped segment may have: each is an election, and the entry must fit a group.
pub const MAX_SEGMENT_EPOCHS: usize = 4096;

const ADOPTED: u32 = 1;
const HAS_PRODUCERS: u32 = 2;

/// Payload of an install entry: with the entry's segment and position, all that is known of the segment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Installation {
    /// The segment.
    pub replacement: Replacement,
    /// It is one batch that came in a file of its own.
    pub adopted: bool,
    /// It has batches of idempotent producers: a replay looks for them.
    pub has_producers: bool,
    /// The running hash with which the chain through it begins.
    pub hash_before: u64,
    /// Number of the log's temporary file.
    pub log_id: u64,
    /// Number of the index's temporary file.
    pub index_id: u64,
    /// Where epochs begin in it, the first one at its base offset.
    pub epochs: Vec<EpochStart>,
}

impl Installation {
    /// Of a checked segment in two temporary files.
    pub fn of(segment: &CheckedSegment, log_id: u64, index_id: u64) -> Installation {
        Installation {
            replacement: Replacement::of(&segment.info),
            adopted: segment.info.adopted,
            has_producers: !segment.producers.is_empty(),
            hash_before: segment.hash_before,
            log_id,
            index_id,
            epochs: segment.epochs.clone(),
        }
    }

    /// The segment that an entry with this payload brings.
    pub fn segment(&self, entry: &EntryHeader) -> SegmentInfo {
        SegmentInfo { adopted: self.adopted, ..self.replacement.segment(entry) }
    }

    /// As stored.
    pub fn encode(&self) -> Vec<u8> {
        let mut payload = vec![0; FIXED_LEN + EPOCH_LEN * self.epochs.len()];
        put(&mut payload, 0, &self.replacement.encode());
        let flags = if self.adopted { ADOPTED } else { 0 } | if self.has_producers { HAS_PRODUCERS } else { 0 };
        put(&mut payload, REPLACEMENT_LEN, &flags.to_le_bytes());
        put(&mut payload, REPLACEMENT_LEN + 4, &(self.epochs.len() as u32).to_le_bytes());
        put(&mut payload, REPLACEMENT_LEN + 8, &self.hash_before.to_le_bytes());
        put(&mut payload, REPLACEMENT_LEN + 16, &self.log_id.to_le_bytes());
        put(&mut payload, REPLACEMENT_LEN + 24, &self.index_id.to_le_bytes());
        for (at, (epoch, start)) in self.epochs.iter().enumerate() {
            put(&mut payload, FIXED_LEN + EPOCH_LEN * at, &epoch.to_le_bytes());
            put(&mut payload, FIXED_LEN + EPOCH_LEN * at + 4, &start.to_le_bytes());
        }
        payload
    }

    /// Of an entry's payload.
    ///
    /// # Errors
    /// When the length is another one than its fields say.
    pub fn decode(payload: &[u8]) -> Result<Installation, PayloadError> {
        if payload.len() < FIXED_LEN {
            return Err(PayloadError::Length { expected: FIXED_LEN, actual: payload.len() });
        }
        let count = (u32_at(payload, REPLACEMENT_LEN + 4) as usize).min(MAX_SEGMENT_EPOCHS + 1);
        expect_len(payload, FIXED_LEN + EPOCH_LEN * count)?;
        let epoch = |at: usize| (i32_at(payload, FIXED_LEN + EPOCH_LEN * at), i64_at(payload, FIXED_LEN + EPOCH_LEN * at + 4));
        let flags = u32_at(payload, REPLACEMENT_LEN);
        Ok(Installation {
            replacement: Replacement::decode(&payload[..REPLACEMENT_LEN])?,
            adopted: flags & ADOPTED != 0,
            has_producers: flags & HAS_PRODUCERS != 0,
            hash_before: u64_at(payload, REPLACEMENT_LEN + 8),
            log_id: u64_at(payload, REPLACEMENT_LEN + 16),
            index_id: u64_at(payload, REPLACEMENT_LEN + 24),
            epochs: (0..count).map(epoch).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_installation_survives_its_encoding() {
        let info = SegmentInfo { end_offset: 50, max_timestamp: 9, index_entries: 3, ..SegmentInfo::new(5, 2, 0xdead) };
        let installation = Installation {
            replacement: Replacement::of(&info),
            adopted: true,
            has_producers: true,
            hash_before: 0xbeef,
            log_id: 7,
            index_id: u64::MAX,
            epochs: vec![(3, 5), (4, 20)],
        };
        let payload = installation.encode();
        assert_eq!(Installation::decode(&payload), Ok(installation.clone()));
        let bare = Installation { adopted: false, has_producers: false, epochs: Vec::new(), ..installation };
        assert_eq!(Installation::decode(&bare.encode()), Ok(bare));
        for len in 0..payload.len() {
            assert!(Installation::decode(&payload[..len]).is_err(), "{len} bytes");
        }
        let mut longer = payload;
        longer[REPLACEMENT_LEN + 4..REPLACEMENT_LEN + 8].fill(0xff);
        assert!(Installation::decode(&longer).is_err());
    }
}
