//! What was found wrong in a store: where, and what.

use std::fmt;

/// What kind of thing is damaged.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum DamageKind {
    /// A file's header block.
    Header,
    /// A checkpoint.
    Checkpoint,
    /// A group of the journal.
    Group,
    /// An entry in a group that checks.
    Entry,
    /// A batch.
    Batch,
    /// Offsets or positions that don't follow each other.
    Continuity,
    /// The running hash.
    RunningHash,
    /// An index entry.
    Index,
    /// Bytes that must be zero.
    Padding,
    /// A file that should be there.
    Missing,
    /// A file that should not.
    Unknown,
    /// The command log.
    Catalogue,
    /// A partition that was set aside.
    Quarantined,
}

impl DamageKind {
    /// The name, as in JSON.
    pub fn name(self) -> &'static str {
        match self {
            DamageKind::Header => "header",
            DamageKind::Checkpoint => "checkpoint",
            DamageKind::Group => "group",
            DamageKind::Entry => "entry",
            DamageKind::Batch => "batch",
            DamageKind::Continuity => "continuity",
            DamageKind::RunningHash => "running_hash",
            DamageKind::Index => "index",
            DamageKind::Padding => "padding",
            DamageKind::Missing => "missing",
            DamageKind::Unknown => "unknown",
            DamageKind::Catalogue => "catalogue",
            DamageKind::Quarantined => "quarantined",
        }
    }
}

impl fmt::Display for DamageKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One thing that is wrong.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Damage {
    /// The file, relative to the data directory.
    pub file: String,
    /// Where in it, bytes.
    pub offset: u64,
    /// What.
    pub kind: DamageKind,
    /// In words, with expected and actual.
    pub detail: String,
}

impl Damage {
    /// From its parts.
    pub fn new(file: impl Into<String>, offset: u64, kind: DamageKind, detail: impl fmt::Display) -> Damage {
        Damage { file: file.into(), offset, kind, detail: detail.to_string() }
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}: {}: {}", self.file, self.offset, self.kind, self.detail)
    }
}
