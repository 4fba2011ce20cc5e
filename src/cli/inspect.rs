//! `corelane inspect`: looks at files of a store, changes nothing (but `repair --apply`), goes on behind damage.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Subcommand;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::exit::{Exit, Failure, output_failed};
use crate::log::checkpoint::{CheckpointBody, PartitionState};
use crate::log::damage::Damage;
use crate::log::file_header::{CheckpointHeader, SegmentHeader};
use crate::log::files::FileError;
use crate::log::inspect::{self, BatchLine, GroupLine, VerifyProgress, VerifyReport};
use crate::log::paths::{self, PartitionFile};
use crate::shard::blocking_files::BlockingFiles;

/// Between two lines of progress where there is no terminal.
const PROGRESS_LINES: Duration = Duration::from_secs(5);

/// Flags of `inspect`.
#[derive(clap::Args)]
pub struct InspectArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// List the batches of a segment (.log)
    #[command(after_help = "Example: corelane inspect segment data/topics/TOPIC-ID/0/00000000000000000000.log")]
    Segment(FileArgs),
    /// List the entries of an index (.index)
    #[command(after_help = "Example: corelane inspect index data/topics/TOPIC-ID/0/00000000000000000000.index")]
    Index(FileArgs),
    /// List the groups of a journal file and what is in them
    #[command(after_help = "Example: corelane inspect journal data/journal/0000000000000001.journal")]
    Journal(FileArgs),
    /// Print a checkpoint
    #[command(after_help = "Example: corelane inspect checkpoint data/checkpoint/0000000000000001-0000-a.checkpoint")]
    Checkpoint(FileArgs),
    /// Check every byte of a stopped or running store
    #[command(after_help = "Example: corelane inspect verify --data ./corelane-data")]
    Verify(VerifyArgs),
    /// Make the checkpoint of a shard again that has lost both, from its segments and its journal
    #[command(
        long_about = "Make the checkpoint of a shard again that has lost both, from its segments and its journal.\n\nWithout --apply it only says what it would \
                      write. Partitions that don't fit together are written down as quarantined, the others are whole; the next start replays the journal over \
                      them, with all its checks. No broker may run on the directory. Keep a copy of it first.",
        after_help = "Example: corelane inspect repair --data ./corelane-data --apply"
    )]
    Repair(RepairArgs),
}

#[derive(clap::Args)]
struct RepairArgs {
    /// The data directory
    #[arg(long, value_name = "DIR", default_value = "./corelane-data")]
    data: PathBuf,
    /// Write the checkpoints
    #[arg(long)]
    apply: bool,
    /// One JSON object a line for each partition
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
struct FileArgs {
    /// The file
    file: PathBuf,
    /// One JSON object a line; the last one is the summary
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
struct VerifyArgs {
    /// The data directory
    #[arg(long, value_name = "DIR", default_value = "./corelane-data")]
    data: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl InspectArgs {
    /// Whether errors are to be JSON too.
    pub fn json(&self) -> bool {
        match &self.what {
            What::Segment(args) | What::Index(args) | What::Journal(args) | What::Checkpoint(args) => args.json,
            What::Verify(args) => args.json,
            What::Repair(args) => args.json,
        }
    }
}

/// Looks and prints.
pub fn run(args: InspectArgs) -> Result<(), Failure> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    let damage = match args.what {
        What::Segment(args) => segment(&args, &mut out),
        What::Index(args) => index(&args, &mut out),
        What::Journal(args) => journal(&args, &mut out),
        What::Checkpoint(args) => checkpoint(&args, &mut out),
        What::Verify(args) => verify(&args, &mut out),
        What::Repair(args) => super::repair::run(&args.data, args.apply, args.json, &mut out),
    }?;
    out.flush().or_else(|e| output_failed(&e))?;
    match damage {
        0 => Ok(()),
        1 => Err(Failure::new(Exit::Failed, "1 thing is damaged")),
        many => Err(Failure::new(Exit::Failed, format!("{many} things are damaged"))),
    }
}

fn failed(error: &FileError) -> Failure {
    Failure::new(Exit::Usage, error.to_string())
}

/// The file system at a directory: without the page cache, where that is possible.
fn open(dir: &Path, probe: &Path) -> BlockingFiles {
    BlockingFiles::read_only(dir, BlockingFiles::is_direct(probe))
}

/// A single file: its directory, and its name there.
fn split(file: &Path) -> Result<(BlockingFiles, String), Failure> {
    let name = file.file_name().and_then(|name| name.to_str());
    let name = name.ok_or_else(|| Failure::usage(format!("{} is not a file", file.display())))?;
    let dir = match file.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    Ok((open(dir, file), name.to_owned()))
}

/// Lines of output; the first failure to write is kept to the end, so that a closed pipe ends quietly.
struct Lines<'a> {
    out: &'a mut dyn Write,
    json: bool,
    failure: Option<io::Error>,
}

impl Lines<'_> {
    fn line(&mut self, text: impl FnOnce() -> String, value: impl FnOnce() -> Value) {
        if self.failure.is_none() {
            let line = if self.json { value().to_string() } else { text() };
            self.failure = writeln!(self.out, "{line}").err();
        }
    }

    /// Damage, then how many there were.
    fn end(mut self, damage: &[Damage], summary: Value, text: String) -> Result<usize, Failure> {
        if !self.json {
            for damage in damage {
                self.line(|| format!("DAMAGE {damage}"), || Value::Null);
            }
        }
        self.line(|| text, || merged(summary, json!({ "damage": damage.iter().map(damage_json).collect::<Vec<_>>() })));
        match self.failure {
            Some(error) => output_failed(&error).map(|()| damage.len()),
            None => Ok(damage.len()),
        }
    }
}

fn merged(mut first: Value, second: Value) -> Value {
    if let (Value::Object(first), Value::Object(second)) = (&mut first, second) {
        first.extend(second);
    }
    first
}

fn damage_json(damage: &Damage) -> Value {
    json!({ "file": damage.file, "offset": damage.offset, "kind": damage.kind.name(), "detail": damage.detail })
}

fn owner_json(header: &Option<SegmentHeader>) -> Value {
    match header {
        Some(header) => json!({
            "topic_id": header.partition.topic.to_string(),
            "partition": header.partition.partition,
            "base_offset": header.base_offset,
            "rewrite_generation": header.rewrite_generation,
        }),
        None => Value::Null,
    }
}

fn owner_text(header: &Option<SegmentHeader>) -> String {
    header.map_or("unknown owner".into(), |header| format!("{} from offset {}", header.partition, header.base_offset))
}

fn segment(args: &FileArgs, out: &mut dyn Write) -> Result<usize, Failure> {
    let (mut files, name) = split(&args.file)?;
    let mut lines = Lines { out, json: args.json, failure: None };
    let summary = inspect::inspect_segment(&mut files, &name, &mut |batch| lines.line(|| batch_text(batch), || batch_json(batch)));
    let summary = summary.map_err(|e| failed(&e))?;
    let text = format!(
        "segment of {}: {} batches, {} records, next offset {}, {} of {} bytes",
        owner_text(&summary.header),
        summary.batches,
        summary.records,
        summary.next_offset,
        summary.end,
        summary.len
    );
    let value = json!({
        "segment": owner_json(&summary.header),
        "batches": summary.batches,
        "records": summary.records,
        "next_offset": summary.next_offset,
        "end": summary.end,
        "bytes": summary.len,
    });
    lines.end(&summary.damage, value, text)
}

fn batch_text(batch: &BatchLine) -> String {
    let header = &batch.header;
    let mut text = format!(
        "{:>12}  offsets {}..{}  {} bytes  {} records  epoch {}  max timestamp {}  crc {:08x}",
        batch.position,
        header.base_offset,
        header.next_offset(),
        header.total_len(),
        header.record_count,
        header.leader_epoch,
        header.max_timestamp,
        header.crc
    );
    if header.has_producer() {
        text += &format!("  producer {}/{} sequence {}", header.producer_id, header.producer_epoch, header.base_sequence);
    }
    if let Some(error) = &batch.error {
        text += &format!("  DAMAGED: {error}");
    }
    text
}

fn batch_json(batch: &BatchLine) -> Value {
    let header = &batch.header;
    json!({
        "position": batch.position,
        "base_offset": header.base_offset,
        "last_offset": header.last_offset(),
        "bytes": header.total_len(),
        "records": header.record_count,
        "leader_epoch": header.leader_epoch,
        "attributes": header.attributes,
        "base_timestamp": header.base_timestamp,
        "max_timestamp": header.max_timestamp,
        "producer_id": header.producer_id,
        "producer_epoch": header.producer_epoch,
        "base_sequence": header.base_sequence,
        "crc": header.crc,
        "error": batch.error,
    })
}

fn index(args: &FileArgs, out: &mut dyn Write) -> Result<usize, Failure> {
    let (mut files, name) = split(&args.file)?;
    let base_offset = match paths::parse_partition_file(&name) {
        Some(PartitionFile::Index(base_offset, _)) => base_offset,
        _ => 0,
    };
    let summary = inspect::inspect_index(&mut files, &name, base_offset).map_err(|e| failed(&e))?;
    let mut lines = Lines { out, json: args.json, failure: None };
    for entry in &summary.entries {
        lines.line(
            || format!("{:>12}  offset {}  largest timestamp before {}  hash {:016x}", entry.position, entry.offset, entry.max_timestamp, entry.running_hash),
            || json!({ "offset": entry.offset, "position": entry.position, "max_timestamp": entry.max_timestamp, "running_hash": format!("{:016x}", entry.running_hash) }),
        );
    }
    let text = format!("index of {}: {} entries", owner_text(&summary.header), summary.entries.len());
    lines.end(&summary.damage, json!({ "segment": owner_json(&summary.header), "entries": summary.entries.len() }), text)
}

fn journal(args: &FileArgs, out: &mut dyn Write) -> Result<usize, Failure> {
    let (mut files, name) = split(&args.file)?;
    let mut lines = Lines { out, json: args.json, failure: None };
    let summary = inspect::inspect_journal(&mut files, &name, &mut |group| lines.line(|| group_text(group), || group_json(group)));
    let summary = summary.map_err(|e| failed(&e))?;
    let id = summary.header.map(|header| header.file);
    let text = format!("journal file {}: {} groups", id.map_or("unknown".into(), |id| format!("{id:016x}")), summary.groups);
    lines.end(&summary.damage, json!({ "journal": id, "groups": summary.groups }), text)
}

fn group_text(group: &GroupLine) -> String {
    let header = &group.header;
    let mut text = format!(
        "{:>12}  generation {}  shard {}  group {}  durable {}  {} bytes  {} entries",
        header.position, header.generation, header.shard, header.sequence, header.durable_sequence, header.length, header.entries
    );
    for entry in &group.entries {
        let header = &entry.header;
        text += &format!(
            "\n{:>14}{:?}  {}  segment {} at {}  offsets {}..{}  {} bytes, {} carried",
            "",
            header.kind,
            header.topic_partition,
            header.segment,
            header.position,
            header.base_offset,
            header.end_offset,
            header.payload_len,
            header.carried
        );
    }
    text
}

fn group_json(group: &GroupLine) -> Value {
    let header = &group.header;
    let entries: Vec<_> = group
        .entries
        .iter()
        .map(|entry| {
            let header = &entry.header;
            json!({
                "kind": format!("{:?}", header.kind),
                "topic_id": header.topic_partition.topic.to_string(),
                "partition": header.topic_partition.partition,
                "segment": header.segment,
                "position": header.position,
                "base_offset": header.base_offset,
                "end_offset": header.end_offset,
                "leader_epoch": header.leader_epoch,
                "high_watermark": header.high_watermark,
                "bytes": header.payload_len,
                "carried": header.carried,
            })
        })
        .collect();
    json!({
        "position": header.position,
        "generation": header.generation,
        "shard": header.shard,
        "sequence": header.sequence,
        "durable_sequence": header.durable_sequence,
        "bytes": header.length,
        "entries": entries,
    })
}

fn checkpoint(args: &FileArgs, out: &mut dyn Write) -> Result<usize, Failure> {
    let (mut files, name) = split(&args.file)?;
    let mut lines = Lines { out, json: args.json, failure: None };
    match inspect::inspect_checkpoint(&mut files, &name).map_err(|e| failed(&e))? {
        Ok((header, body)) => {
            body.partitions.iter().for_each(|state| lines.line(|| partition_text(state), || partition_json(state)));
            let (text, value) = checkpoint_end(&header, &body);
            lines.end(&[], value, text)
        }
        Err(damage) => lines.end(&[damage], json!({}), "no checkpoint can be read".into()),
    }
}

fn checkpoint_end(header: &CheckpointHeader, body: &CheckpointBody) -> (String, Value) {
    let text = format!(
        "checkpoint of generation {}, shard {}: after group {}, journal needed from group {}, {} partitions",
        header.generation,
        header.shard,
        body.sequence,
        body.replay_from,
        body.partitions.len()
    );
    let value = json!({
        "generation": header.generation,
        "shard": header.shard,
        "sequence": body.sequence,
        "replay_from": body.replay_from,
        "partitions": body.partitions.len(),
    });
    (text, value)
}

fn partition_text(state: &PartitionState) -> String {
    let mut text = format!(
        "{}{}  offsets {}..{}  watermark {}  hash {:016x}  flushed to {} of segment {}  {} producers  epochs {:?}",
        state.partition,
        if state.quarantined { "  QUARANTINED" } else { "" },
        state.log_start,
        state.log_end,
        state.high_watermark,
        state.running_hash,
        state.flushed_position,
        state.flushed_segment,
        state.producers.len(),
        state.epochs
    );
    for segment in &state.segments {
        text += &format!(
            "\n{:>14}segment {}..{}  {} bytes  {} index entries{}{}",
            "",
            segment.base_offset,
            segment.end_offset,
            segment.valid_end,
            segment.index_entries,
            if segment.sealed { "  sealed" } else { "" },
            if segment.adopted { "  adopted" } else { "" }
        );
    }
    text
}

fn partition_json(state: &PartitionState) -> Value {
    let segments: Vec<_> = state
        .segments
        .iter()
        .map(|segment| {
            json!({
                "base_offset": segment.base_offset,
                "end_offset": segment.end_offset,
                "valid_end": segment.valid_end,
                "max_timestamp": segment.max_timestamp,
                "running_hash": format!("{:016x}", segment.running_hash),
                "rewrite_generation": segment.rewrite_generation,
                "index_entries": segment.index_entries,
                "sealed": segment.sealed,
                "adopted": segment.adopted,
            })
        })
        .collect();
    json!({
        "topic_id": state.partition.topic.to_string(),
        "partition": state.partition.partition,
        "quarantined": state.quarantined,
        "log_start": state.log_start,
        "log_end": state.log_end,
        "high_watermark": state.high_watermark,
        "running_hash": format!("{:016x}", state.running_hash),
        "max_timestamp": state.max_timestamp,
        "flushed_segment": state.flushed_segment,
        "flushed_position": state.flushed_position,
        "epochs": state.epochs,
        "producers": state.producers.len(),
        "segments": segments,
    })
}

fn verify(args: &VerifyArgs, out: &mut dyn Write) -> Result<usize, Failure> {
    if !args.data.is_dir() {
        return Err(Failure::usage(format!("{} is not a directory", args.data.display())));
    }
    let mut files = open(&args.data, &args.data.join(paths::META));
    let mut shown = Shown::new(args.json);
    let report = inspect::verify(&mut files, &mut |progress| shown.show(progress));
    shown.end();
    let report = report.map_err(|e| failed(&e))?;
    let of_cluster = args.data.join(paths::CONSENSUS_DIR).exists();
    let written = if args.json { writeln!(out, "{}", report_json(&report)) } else { print_report(&report, of_cluster, out) };
    written.or_else(|e| output_failed(&e))?;
    Ok(report.damage.len())
}

fn report_json(report: &VerifyReport) -> Value {
    json!({
        "files": report.files,
        "bytes": report.bytes,
        "partitions": report.partitions,
        "damage": report.damage.iter().map(damage_json).collect::<Vec<_>>(),
        "ambiguous": report.ambiguous.iter().map(damage_json).collect::<Vec<_>>(),
    })
}

fn print_report(report: &VerifyReport, of_cluster: bool, out: &mut dyn Write) -> io::Result<()> {
    for damage in &report.damage {
        writeln!(out, "DAMAGE {damage}")?;
    }
    for ambiguous in &report.ambiguous {
        writeln!(out, "not whole, and nothing says that it was ever acknowledged: {ambiguous}")?;
    }
    writeln!(
        out,
        "{} files, {} bytes, {} partitions checked: {}",
        report.files,
        report.bytes,
        report.partitions,
        if report.damage.is_empty() { "no damage".into() } else { format!("{} damaged", report.damage.len()) }
    )?;
    if of_cluster {
        writeln!(out, "the files of the consensus are not looked at here: each start of the broker checks them")?;
    }
    Ok(())
}

/// Progress: a bar on a terminal, a line now and then in a log, nothing beside JSON.
struct Shown {
    bar: Option<ProgressBar>,
    lines: bool,
    last: Instant,
}

impl Shown {
    fn new(json: bool) -> Shown {
        let terminal = io::stderr().is_terminal();
        let bar = (terminal && !json).then(|| {
            let style = ProgressStyle::with_template("{spinner} {msg}  {bytes} at {bytes_per_sec}").expect("the template is right");
            ProgressBar::new_spinner().with_style(style)
        });
        Shown { bar, lines: !terminal && !json, last: Instant::now() }
    }

    fn show(&mut self, progress: VerifyProgress) {
        if let Some(bar) = &self.bar {
            bar.set_position(progress.bytes);
            bar.set_message(format!("{} files", progress.files));
        } else if self.lines && self.last.elapsed() >= PROGRESS_LINES {
            self.last = Instant::now();
            eprintln!("verify: {} files, {} bytes", progress.files, progress.bytes);
        }
    }

    fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
