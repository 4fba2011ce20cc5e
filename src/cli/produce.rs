//! `corelane produce`: one record a line, from a file or standard input.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, BufReader};

use super::broker::BrokerArgs;
use super::exit::{Exit, Failure, output_failed};
use super::format::unescape;
use crate::batch::Compression;
use crate::client::{DeliveryFuture, Producer, ProducerRecord, RecordMetadata};
use crate::limits;

/// Flags of `produce`.
#[derive(clap::Args)]
#[command(after_help = "Example: printf 'alice:42\\nbob:7\\n' | corelane produce scores --key-separator :")]
pub struct ProduceArgs {
    /// The topic
    topic: String,
    /// A file with one record a line; standard input without it
    file: Option<PathBuf>,
    #[command(flatten)]
    broker: BrokerArgs,
    /// What stands between key and value, as : or \t; a line without it is a value without a key
    #[arg(long, value_name = "S")]
    key_separator: Option<String>,
    /// Codec of the batches: none, gzip, snappy, lz4, zstd
    #[arg(long, value_name = "C", default_value = "none")]
    compression: String,
    /// Send everything to this partition [default: by the key's hash, or spread]
    #[arg(long, value_name = "P")]
    partition: Option<u32>,
    /// Print what was acknowledged as JSON
    #[arg(long)]
    pub json: bool,
}

/// Unacknowledged records that are remembered; then the oldest is waited for.
const MAX_UNACKNOWLEDGED: usize = 100_000;

/// Sends every line, waits for every acknowledgement.
pub fn run(args: ProduceArgs) -> Result<(), Failure> {
    let separator = args.key_separator.as_deref().map(unescape).transpose().map_err(|e| Failure::usage(e.to_string()))?;
    if separator.as_ref().is_some_and(Vec::is_empty) {
        return Err(Failure::usage("--key-separator must not be empty"));
    }
    let started = Instant::now();
    let sent = super::block_on(async {
        let producer = args.broker.connect().await?.producer().compression(compression(&args.compression)?).build()?;
        let mut sender = Sender {
            producer,
            topic: &args.topic,
            partition: args.partition,
            waiting: VecDeque::new(),
            acked: Acked::default(),
            bar: ProgressBar::hidden(),
        };
        match &args.file {
            None => sender.send_lines(BufReader::new(tokio::io::stdin()), separator.as_deref()).await?,
            Some(path) => {
                let file = tokio::fs::File::open(path).await.map_err(|e| Failure::usage(format!("{}: {e}", path.display())))?;
                if !args.json && io::stderr().is_terminal() {
                    sender.bar = progress_bar(file.metadata().await.map_or(0, |metadata| metadata.len()));
                }
                let sent = sender.send_lines(BufReader::with_capacity(READ_BUFFER, file), separator.as_deref()).await;
                sender.bar.finish_and_clear();
                sent?;
            }
        }
        Ok(sender.acked)
    })?;
    report(&args, &sent, started.elapsed().as_secs_f64())
}

const READ_BUFFER: usize = 256 * 1024;

/// A bar on standard error, of a file's bytes.
fn progress_bar(len: u64) -> ProgressBar {
    let template = "{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
    ProgressBar::new(len).with_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn compression(name: &str) -> Result<Compression, Failure> {
    let found = Compression::ALL.into_iter().find(|codec| codec.name() == name);
    found.ok_or_else(|| Failure::usage(format!("--compression must be none, gzip, snappy, lz4 or zstd, not {name:?}")))
}

fn report(args: &ProduceArgs, acked: &Acked, seconds: f64) -> Result<(), Failure> {
    if !args.json {
        eprintln!("{} record(s), {} bytes acknowledged by {} in {seconds:.3} s", acked.records, acked.bytes, args.topic);
        return Ok(());
    }
    let ranges = acked.offsets.iter().map(|(p, (first, last))| json!({ "partition": p, "first": first, "last": last }));
    let line = json!({
        "topic": args.topic, "records": acked.records, "bytes": acked.bytes, "seconds": seconds, "partitions": ranges.collect::<Vec<_>>(),
    });
    writeln!(io::stdout(), "{line}").or_else(|e| output_failed(&e))
}

/// What was acknowledged.
#[derive(Default)]
struct Acked {
    records: u64,
    /// Of keys and values.
    bytes: u64,
    /// First and last offset by partition.
    offsets: BTreeMap<u32, (i64, i64)>,
}

impl Acked {
    fn add(&mut self, record: RecordMetadata, bytes: u64) {
        self.records += 1;
        self.bytes += bytes;
        let range = self.offsets.entry(record.partition).or_insert((record.offset, record.offset));
        *range = (range.0.min(record.offset), range.1.max(record.offset));
    }
}

struct Sender<'a> {
    producer: Producer,
    topic: &'a str,
    partition: Option<u32>,
    waiting: VecDeque<(DeliveryFuture, u64)>,
    acked: Acked,
    bar: ProgressBar,
}

impl Sender<'_> {
    async fn send_lines(&mut self, mut input: impl AsyncBufRead + Unpin, separator: Option<&[u8]>) -> Result<(), Failure> {
        let mut line = Vec::new();
        while read_line(&mut input, &mut line).await? {
            let (key, value) = split(&line, separator);
            let mut record = ProducerRecord::to(self.topic).value(value);
            if let Some(key) = key {
                record = record.key(key);
            }
            if let Some(partition) = self.partition {
                record = record.partition(partition);
            }
            let delivery = self.producer.send_nowait(record).await?;
            self.waiting.push_back((delivery, (value.len() + key.map_or(0, <[u8]>::len)) as u64));
            self.settle(MAX_UNACKNOWLEDGED).await?;
            // With the end of the line.
            self.bar.inc(line.len() as u64 + 1);
        }
        self.producer.flush().await;
        self.settle(0).await
    }

    /// Takes the acknowledgements that are there, and waits until at most so many are not.
    async fn settle(&mut self, most: usize) -> Result<(), Failure> {
        while let Some((delivery, bytes)) = self.waiting.pop_front() {
            let outcome = match delivery.try_result() {
                Some(outcome) => outcome,
                None if self.waiting.len() >= most => delivery.await,
                None => {
                    self.waiting.push_front((delivery, bytes));
                    return Ok(());
                }
            };
            self.acked.add(outcome?, bytes);
        }
        Ok(())
    }
}

/// The next line without its end; false at the end of the input.
async fn read_line(input: &mut (impl AsyncBufRead + Unpin), line: &mut Vec<u8>) -> Result<bool, Failure> {
    line.clear();
    // One more than the longest record, so that too long is seen before it is all in memory.
    let mut bounded = input.take(limits::MAX_MESSAGE_BYTES as u64 + 1);
    let read = bounded.read_until(b'\n', line).await.map_err(|e| Failure::new(Exit::Failed, format!("the input can't be read: {e}")))?;
    if read > limits::MAX_MESSAGE_BYTES {
        return Err(Failure::new(Exit::Failed, format!("a line is longer than {} bytes, the longest record", limits::MAX_MESSAGE_BYTES)));
    }
    if line.last() == Some(&b'\n') {
        line.pop();
    }
    Ok(read > 0)
}

/// Key and value, at the first separator.
fn split<'a>(line: &'a [u8], separator: Option<&[u8]>) -> (Option<&'a [u8]>, &'a [u8]) {
    let Some(separator) = separator else { return (None, line) };
    match line.windows(separator.len()).position(|window| window == separator) {
        Some(at) => (Some(&line[..at]), &line[at + separator.len()..]),
        None => (None, line),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_split_at_the_first_separator() {
        assert_eq!(split(b"a:b:c", Some(b":")), (Some(&b"a"[..]), &b"b:c"[..]));
        assert_eq!(split(b"abc", Some(b"::")), (None, &b"abc"[..]));
        assert_eq!(split(b":v", Some(b":")), (Some(&b""[..]), &b"v"[..]));
        assert_eq!(split(b"a:b", None), (None, &b"a:b"[..]));
        assert_eq!(split(b"", Some(b":")), (None, &b""[..]));
    }

    #[test]
    fn every_line_is_a_record_even_an_empty_or_unfinished_one() {
        let lines = super::super::block_on(async {
            let (mut input, mut line, mut lines) = (&b"a\n\nb\r\nlast"[..], Vec::new(), Vec::new());
            while read_line(&mut input, &mut line).await? {
                lines.push(line.clone());
            }
            Ok(lines)
        });
        assert_eq!(lines.unwrap(), [&b"a"[..], b"", b"b\r", b"last"]);
    }

    #[test]
    fn codecs_have_their_names() {
        assert_eq!(compression("zstd").unwrap(), Compression::Zstd);
        assert!(compression("rar").unwrap_err().message.contains("gzip"));
    }
}
