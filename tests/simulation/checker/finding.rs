//! What is found, and its words.

use std::collections::BTreeMap;
use std::fmt::{self, Write};

use corelane::types::Offset;

use super::history::{Event, History, Operation, Partition, Value};

/// What is wrong.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Kind {
    /// The history contradicts itself: the test is wrong, and nothing else here can be believed.
    Malformed,
    /// Acknowledged, never read, though a consumer read past it; or read once, and gone.
    LostWrite,
    /// Acknowledged and not in a final read, at the end of the log: nothing later was read either.
    Unseen,
    /// One value of an idempotent producer at two offsets.
    Duplicate,
    /// A value was read whose send was refused for certain.
    AbortedRead,
    /// Two values at one offset.
    InconsistentOffset,
    /// A consumer went back, within a poll or from one to the next.
    NonmonotonicPoll,
    /// A consumer left out records that exist, within a poll or from one to the next.
    SkippedPoll,
    /// Offsets against the order of sending: of one idempotent producer, or of a send that began after another one was acknowledged.
    NonmonotonicSend,
    /// An offset that does not exist.
    BeyondEnd,
    /// An offset between the log's start and end at which there is nothing.
    Hole,
    /// A value that nobody sent, or nobody yet, or nobody to this partition.
    UnsentValue,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Kind; 12] = [
        Kind::Malformed,
        Kind::LostWrite,
        Kind::Unseen,
        Kind::Duplicate,
        Kind::AbortedRead,
        Kind::InconsistentOffset,
        Kind::NonmonotonicPoll,
        Kind::SkippedPoll,
        Kind::NonmonotonicSend,
        Kind::BeyondEnd,
        Kind::Hole,
        Kind::UnsentValue,
    ];

    /// As people call it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Malformed => "malformed history",
            Kind::LostWrite => "lost write",
            Kind::Unseen => "unseen",
            Kind::Duplicate => "duplicate",
            Kind::AbortedRead => "aborted read",
            Kind::InconsistentOffset => "inconsistent offset",
            Kind::NonmonotonicPoll => "non-monotonic poll",
            Kind::SkippedPoll => "skipped poll",
            Kind::NonmonotonicSend => "non-monotonic send",
            Kind::BeyondEnd => "beyond the end",
            Kind::Hole => "hole",
            Kind::UnsentValue => "unsent value",
        }
    }
}

/// One thing that is wrong, with all that a person needs to follow it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// What is wrong.
    pub kind: Kind,
    /// Where, if it is of one partition.
    pub partition: Option<Partition>,
    /// At which offset, if it has one.
    pub offset: Option<Offset>,
    /// The values that it is about.
    pub values: Vec<Value>,
    /// The events that show it, by their places in the history.
    pub events: Vec<usize>,
    /// The story.
    pub text: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.kind.name())?;
        if let Some(partition) = self.partition {
            write!(f, "partition {partition}: ")?;
        }
        f.write_str(&self.text)
    }
}

/// Findings of a kind that are told in full.
const TOLD: usize = 5;
/// Records of a poll that are printed around those which matter.
const PRINTED: usize = 8;

/// For a person: how many there are of each kind, the first of each in full, and the events that they name.
pub fn report(history: &History, findings: &[Finding]) -> String {
    let mut text = String::new();
    let mut of_kind: BTreeMap<Kind, Vec<&Finding>> = BTreeMap::new();
    for finding in findings {
        of_kind.entry(finding.kind).or_default().push(finding);
    }
    for (kind, all) in of_kind {
        let _ = writeln!(text, "{}: {}", kind.name(), all.len());
        for finding in all.into_iter().take(TOLD) {
            let _ = writeln!(text, "  {finding}");
            for at in &finding.events {
                if let Some(event) = history.events().get(*at) {
                    let _ = writeln!(text, "    event {at}: {}", line(event, finding));
                }
            }
        }
    }
    text
}

/// An event in one line; of many records those that the finding is about and their neighbours.
fn line(event: &Event, finding: &Finding) -> String {
    let head = format!("{} us, client {}, {:?} ", event.time_us, event.client, event.phase).to_lowercase();
    let about = |partition: Partition, offset: Offset, value: Value| {
        finding.partition.is_none_or(|p| p == partition) && (finding.offset == Some(offset) || finding.values.contains(&value))
    };
    let records: Vec<(Partition, Offset, Value)> = match &event.operation {
        Operation::Poll { records } => records.iter().map(|record| (record.partition, record.offset, record.value)).collect(),
        Operation::FinalRead { partition, records, .. } => records.iter().map(|(offset, value)| (*partition, *offset, *value)).collect(),
        other => return format!("{head}{other:?}"),
    };
    let middle = records.iter().position(|(partition, offset, value)| about(*partition, *offset, *value)).unwrap_or(0);
    let from = middle.saturating_sub(PRINTED / 2);
    let what = match &event.operation {
        Operation::FinalRead { partition, start, end, .. } => format!("final read of partition {partition}, from {start} to {end}"),
        _ => "poll".into(),
    };
    let mut text = format!("{head}{what}, {} records:", records.len());
    for (partition, offset, value) in records.iter().skip(from).take(PRINTED) {
        let _ = write!(text, " {partition}/{offset}={value}");
    }
    if records.len() > PRINTED {
        let _ = write!(text, " (those from number {from})");
    }
    text
}
