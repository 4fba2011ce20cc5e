//! An index made again from its segment.
//!
//! The walk starts behind the last entry that checks, or at the first batch. The running hash before that one is known from the segment before it; where retention
//! has removed that, it is computed back from the hash at the segment's end. An entry is made only of a batch whose CRC checks; the first one that does not ends the
//! index there: the segment itself is damaged then, which a read finds and names.

use crate::checksum::{running_hash, running_hash_start};
use crate::log::files::{FileError, ReadFiles};
use crate::log::index::{Index, IndexEntry, fits_segment};
use crate::log::segment::{FIRST_POSITION, SegmentInfo};
use crate::log::segment_walk::{Found, Pieces};
use crate::types::{Offset, Timestamp};

/// What came of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Rebuilt {
    /// Every batch has the entry that it should have.
    Whole,
    /// Only what is in front of what this says.
    Partly(String),
}

/// Where a walk is.
#[derive(Clone, Copy)]
struct At {
    position: u64,
    offset: Offset,
    hash: u64,
    max_timestamp: Timestamp,
}

/// Adds what is missing at the end of an index whose entries are right: for the batches of the segment's file that begin below `limit`. `before`: the running hash at
/// the segment's start, where the segment before it is known.
pub(super) fn rebuild(
    files: &mut impl ReadFiles,
    path: &str,
    segment: &SegmentInfo,
    limit: u64,
    before: Option<u64>,
    index: &mut Index,
) -> Result<Rebuilt, FileError> {
    let mut pieces = match Pieces::open(files, path) {
        Ok(pieces) => pieces,
        Err(error) if error.is_not_found() => return Ok(Rebuilt::Partly("the segment is not there either".into())),
        Err(error) => return Err(error),
    };
    let kept = index.len();
    let start = |hash| At { position: FIRST_POSITION, offset: segment.base_offset, hash, max_timestamp: Timestamp::MIN };
    let from = match (index.entries().last(), before) {
        (Some(last), _) => At { position: last.position, offset: last.offset, hash: last.running_hash, max_timestamp: last.max_timestamp },
        (None, Some(hash)) => start(hash),
        (None, None) => match hash_at_start(&mut pieces, segment, limit, start(0))? {
            Some(hash) => start(hash),
            None => return Ok(Rebuilt::Partly("the running hash at the segment's start is not known".into())),
        },
    };
    let (end, stopped) = walk(&mut pieces, segment, limit, from, |at| {
        if index.wants(at.position) && fits_segment(segment.base_offset, at.offset, at.position) {
            index.push(IndexEntry { offset: at.offset, position: at.position, max_timestamp: at.max_timestamp, running_hash: at.hash });
        }
    })?;
    if let Some(why) = stopped {
        return Ok(Rebuilt::Partly(why));
    }
    if end.position == segment.valid_end && end.hash != segment.running_hash {
        index.truncate(index.entries().get(kept).map_or(u64::MAX, |entry| entry.position));
        return Ok(Rebuilt::Partly("the segment's running hash is not the log's".into()));
    }
    Ok(Rebuilt::Whole)
}

fn hash_at_start(pieces: &mut Pieces<'_, impl ReadFiles>, segment: &SegmentInfo, limit: u64, start: At) -> Result<Option<u64>, FileError> {
    let mut batches = 0;
    let (end, stopped) = walk(pieces, segment, limit, start, |_| batches += 1)?;
    let whole = stopped.is_none() && end.position == segment.valid_end;
    Ok(whole.then(|| running_hash_start(segment.running_hash, end.hash, batches)))
}

/// Goes over the batches that begin below `limit`, and says where it ended and, where it went on no further, why. Of a batch that is not whole in the file (the journal has its end)
/// nothing is known but that it is the last.
fn walk(
    pieces: &mut Pieces<'_, impl ReadFiles>,
    segment: &SegmentInfo,
    limit: u64,
    mut at: At,
    mut each: impl FnMut(At),
) -> Result<(At, Option<String>), FileError> {
    while at.position < limit {
        let (header, head) = match pieces.batch(at.position, segment.valid_end)? {
            Found::Batch(found) => *found,
            Found::Damaged(found, _) if at.position + found.0.total_len() as u64 > limit => return Ok((at, None)),
            Found::Nothing(_) if limit - at.position < crate::batch::HEADER_LEN as u64 && limit < segment.valid_end => {
                return Ok((at, None));
            }
            Found::Damaged(_, why) | Found::Nothing(why) => return Ok((at, Some(format!("no batch checks at {}: {why}", at.position)))),
        };
        if header.base_offset < at.offset {
            return Ok((at, Some(format!("a batch of offset {} at {}, expected {}", header.base_offset, at.position, at.offset))));
        }
        at.offset = header.base_offset;
        each(at);
        at = At {
            position: at.position + header.total_len() as u64,
            offset: header.next_offset(),
            hash: running_hash(at.hash, &head),
            max_timestamp: at.max_timestamp.max(header.max_timestamp),
        };
    }
    Ok((at, None))
}
