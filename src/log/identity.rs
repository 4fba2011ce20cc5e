//! `meta`: which cluster, node and life a store belongs to, and whether its last run ended well.
//!
//! Two slots of one block each are written in turn and synced, so that one of them is whole at any moment. A store exists once its first slot does.

use crate::limits::BLOCK;
use crate::log::file_header::{self, HeaderError, MetaSlot};
use crate::log::files::{FileError, ReadFiles, StoreFiles, len_if_exists, list_sorted, read_blocks};
use crate::log::paths;

/// Why the identity of a store can't be had.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// The directory holds something, and no identity.
    #[error("{found:?} is there, but no identity: not a store, or its file \"meta\" is lost")]
    NotAStore {
        /// A name in the directory.
        found: String,
    },
    /// Both slots are damaged, or not ours.
    #[error("no slot of \"meta\" can be read: {first}; {second}")]
    Unreadable {
        /// What is wrong with the first slot.
        first: HeaderError,
        /// What is wrong with the second one.
        second: HeaderError,
    },
    /// Written by a newer program, which says that this one must not open it.
    #[error("the store needs a reader of format version {needed}, this program's is {supported}")]
    NewerVersion {
        /// Oldest version that may.
        needed: u16,
        /// Ours.
        supported: u16,
    },
}

/// The identity of the store, `None` where there is no store yet.
///
/// # Errors
/// When there is one that can't be read, or a directory that is no store.
pub fn read(files: &mut impl ReadFiles) -> Result<Option<MetaSlot>, IdentityError> {
    if len_if_exists(files, paths::META)?.unwrap_or(0) == 0 {
        return nothing_else(files).map(|()| None);
    }
    // A first write that was cut short may have left a shorter file: what is not there was to be zero.
    let mut bytes = read_blocks(files, paths::META, 0, 2 * BLOCK)?.to_vec();
    bytes.resize(2 * BLOCK, 0);
    let slots = [decode_slot(&bytes, 0), decode_slot(&bytes, 1)];
    let newest = slots.iter().flatten().max_by_key(|slot| slot.sequence).copied();
    let Some(newest) = newest else {
        let [first, second] = slots.map(|slot| slot.expect_err("no slot is valid"));
        // The very first write of a store, torn: there is nothing to lose yet.
        if bytes.iter().all(|byte| *byte == 0) && nothing_else(files).is_ok() {
            return Ok(None);
        }
        if let HeaderError::NewerVersion { found, supported, .. } = first {
            return Err(IdentityError::NewerVersion { needed: found, supported });
        }
        return Err(IdentityError::Unreadable { first, second });
    };
    let supported = file_header::FileKind::Meta.version();
    if newest.oldest_reader > supported {
        return Err(IdentityError::NewerVersion { needed: newest.oldest_reader, supported });
    }
    Ok(Some(newest))
}

/// Writes the next slot, with the following sequence number, and syncs it. A store that did not exist does then.
///
/// # Errors
/// When the file can't be written.
pub fn write(files: &mut impl StoreFiles, previous: Option<&MetaSlot>, next: &MetaSlot) -> Result<MetaSlot, IdentityError> {
    let next = MetaSlot { sequence: previous.map_or(1, |slot| slot.sequence + 1), ..*next };
    let at = (next.sequence % 2) * BLOCK as u64;
    if previous.is_none() {
        // Both blocks exist from the start, so that writing a slot never changes the file's length.
        files.write(paths::META, 0, &[0; 2 * BLOCK])?;
    }
    files.write(paths::META, at, &file_header::encode_header(&next))?;
    files.sync(paths::META)?;
    if previous.is_none() {
        files.sync_dir("")?;
    }
    Ok(next)
}

fn decode_slot(bytes: &[u8], slot: usize) -> Result<MetaSlot, HeaderError> {
    file_header::decode(bytes.get(slot * BLOCK..(slot + 1) * BLOCK).unwrap_or_default())
}

/// Without an identity the directory may hold the lock file only.
fn nothing_else(files: &mut impl ReadFiles) -> Result<(), IdentityError> {
    let ours = [paths::LOCK, paths::META, "lost+found"];
    match list_sorted(files, "")?.into_iter().find(|entry| !ours.contains(&entry.name.as_str())) {
        None => Ok(()),
        Some(entry) => Err(IdentityError::NotAStore { found: entry.name }),
    }
}
