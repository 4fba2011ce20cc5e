//! Looking at a store without changing it: single files, however damaged, and every byte of a whole store.
//!
//! The functions for single files need nothing but the file; they go on behind damage where that is possible. [`verify`] knows from checkpoints
//! and journals what must be where, and holds every byte that has a meaning against it.

mod files;
mod store;
mod tail;

pub use self::files::{
    BatchLine, EntryLine, GroupLine, IndexSummary, JournalSummary, SegmentSummary, inspect_checkpoint, inspect_index, inspect_journal,
    inspect_segment,
};
pub use self::store::{VerifyError, VerifyProgress, VerifyReport, verify};
