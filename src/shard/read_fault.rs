//! Why a read of a segment fails, and what follows from it.

use std::io;

use crate::request::{Code, Refusal};
use crate::shard::partition_cell::PartitionCell;
use crate::shard::role::Role;
use crate::types::Offset;

/// A replica does not give up all that it has for one sealed segment: that one is read whole, and if it is damaged it is mended, by its leader's or once another one leads. Who reads it now comes
/// back. `None`: it was read whole and is sound, or the log ends in it, or there is no other replica.
pub fn suspected(cell: &PartitionCell, offset: Offset, fault: &Fault) -> Option<Refusal> {
    if matches!(fault, Fault::TooLarge(_)) {
        return None;
    }
    let info = cell.machine.borrow().segment_of(offset).copied().filter(|info| info.sealed)?;
    let is_known = cell.verification.borrow().damaged().any(|(damaged, _)| damaged == info.base_offset);
    if cell.role() == Role::Alone || !cell.verification.borrow_mut().suspect(&info) {
        return None;
    }
    if !is_known {
        let segment = info.base_offset;
        tracing::error!(partition = %cell.id, segment, offset, %fault, "a sealed segment can't be read: all of it is looked at");
    }
    // The partition's task has it read.
    cell.reached.notify();
    Some(cell.refusal(Code::Storage, fault))
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Fault::Io(error) => error.fmt(f),
            Fault::Damaged(what) => f.write_str(what),
            Fault::TooLarge(bytes) => write!(f, "a batch of {bytes} bytes"),
        }
    }
}

/// Why nothing was read.
pub enum Fault {
    /// The disk.
    Io(io::Error),
    /// What was read is not what was written.
    Damaged(String),
    /// A batch that fits no answer, of so many bytes.
    TooLarge(usize),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Fault {
        Fault::Io(error)
    }
}
