//! `corelane consume`: records to standard output.

mod group;

use std::collections::HashMap;
use std::io::{self, BufWriter, Write};
use std::str::FromStr;

use super::broker::BrokerArgs;
use super::exit::{Failure, output_failed};
use super::format::{Format, Shown, record_json};
use crate::client::{Admin, ClientError, ConsumeError, ConsumedBatch, Consumer, SeekTo};
use crate::request::OffsetSpec;
use crate::types::Offset;

/// Flags of `consume`.
#[derive(clap::Args)]
#[command(after_help = "Example: corelane consume scores --exit-at-end --format '%p %o %k=%s\\n'
In a group: corelane consume scores --group board --from-beginning

Format letters: %s value, %k key, %S %K their lengths, %t topic, %p partition, %o offset, %T timestamp, %h headers, %% a percent sign; \
escapes: \\n \\r \\t \\0 \\\\ \\xHH. Nothing is added to a format: one that shall end the line ends with \\n.")]
pub struct ConsumeArgs {
    /// The topic
    topic: String,
    #[command(flatten)]
    broker: BrokerArgs,
    /// Where to start: earliest, latest, an offset, or @ and a time in ms since 1970
    #[arg(long, value_name = "WHERE", default_value = "earliest")]
    from: From,
    /// Read as a member of this consumer group, from where it has committed; what is printed is committed every second and at the end
    #[arg(long, value_name = "G", conflicts_with_all = ["from", "partition", "exit_at_end"])]
    group: Option<String>,
    /// Where the group has committed nothing, start at the first record instead of the end
    #[arg(long, requires = "group")]
    from_beginning: bool,
    /// Only this partition
    #[arg(long, value_name = "P")]
    partition: Option<u32>,
    /// Stop after so many records
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Stop where each partition ended at the start of the command
    #[arg(long)]
    exit_at_end: bool,
    /// How a record is printed
    #[arg(long, value_name = "FORMAT", default_value = "%s\\n", conflicts_with = "json")]
    format: Format,
    /// Print each record as a line of JSON
    #[arg(long)]
    pub json: bool,
}

/// Where to start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct From(SeekTo);

impl FromStr for From {
    type Err = String;

    fn from_str(text: &str) -> Result<From, String> {
        let number = |digits: &str| digits.parse::<i64>().ok().filter(|n| *n >= 0);
        let place = match text {
            "earliest" => Some(SeekTo::Earliest),
            "latest" => Some(SeekTo::Latest),
            _ => match text.strip_prefix('@') {
                Some(time) => number(time).map(SeekTo::Timestamp),
                None => number(text).map(SeekTo::Offset),
            },
        };
        place.map(From).ok_or_else(|| "expected earliest, latest, an offset, or @ and a time in ms since 1970".into())
    }
}

impl std::convert::From<ConsumeError> for Failure {
    fn from(error: ConsumeError) -> Failure {
        Failure::new(Failure::from(error.cause.clone()).exit, error.to_string())
    }
}

/// Prints records until it is told to stop.
pub fn run(args: ConsumeArgs) -> Result<(), Failure> {
    super::block_on(async {
        let client = args.broker.connect().await?;
        if let Some(group) = &args.group {
            return match group::print_records(&args, &client, group).await {
                Err(Stop::Output(error)) => output_failed(&error),
                Err(Stop::Failure(failure)) => Err(failure),
                Ok(()) => Ok(()),
            };
        }
        let mut consumer = client.consumer().build()?;
        match args.partition {
            Some(partition) => consumer.assign(&args.topic, partition, args.from.0).await?,
            None => consumer.assign_topic(&args.topic, args.from.0).await?,
        }
        let ends = if args.exit_at_end { Some(find_ends(&client.admin(), &mut consumer).await?) } else { None };
        let printed = print_records(&args, &mut consumer, ends).await;
        match printed {
            Err(Stop::Output(error)) => output_failed(&error),
            Err(Stop::Failure(failure)) => Err(failure),
            Ok(()) => Ok(()),
        }
    })
}

/// Where each partition ends now; those that are read to their end already are not read at all.
async fn find_ends(admin: &Admin, consumer: &mut Consumer) -> Result<HashMap<u32, Offset>, ClientError> {
    let mut ends = HashMap::new();
    for (topic, partition, position) in consumer.positions() {
        let (end, _) = admin.offset(&topic, partition, OffsetSpec::Latest).await?;
        if position < end {
            ends.insert(partition, end);
        } else {
            consumer.unassign(&topic, partition)?;
        }
    }
    Ok(ends)
}

enum Stop {
    Output(io::Error),
    Failure(Failure),
}

async fn print_records(args: &ConsumeArgs, consumer: &mut Consumer, mut ends: Option<HashMap<u32, Offset>>) -> Result<(), Stop> {
    let mut out = BufWriter::with_capacity(OUTPUT_BUFFER, io::stdout().lock());
    let mut left = args.count.unwrap_or(u64::MAX);
    while left > 0 && ends.as_ref().is_none_or(|ends| !ends.is_empty()) {
        let Some(batch) = consumer.next_batch().await else { break };
        let batch = batch.map_err(|e| Stop::Failure(e.into()))?;
        let end = ends.as_ref().and_then(|ends| ends.get(&batch.partition).copied()).unwrap_or(Offset::MAX);
        print_batch(args, &batch, end, &mut left, &mut out)?;
        if batch.next_offset() >= end {
            consumer.unassign(&args.topic, batch.partition).map_err(|e| Stop::Failure(e.into()))?;
            ends.as_mut().map(|ends| ends.remove(&batch.partition));
        }
        // Who watches sees each batch as it comes; who pipes gets large writes while there is more.
        if consumer.buffered() == 0 {
            out.flush().map_err(Stop::Output)?;
        }
    }
    out.flush().map_err(Stop::Output)
}

const OUTPUT_BUFFER: usize = 64 * 1024;

fn print_batch(args: &ConsumeArgs, batch: &ConsumedBatch, end: Offset, left: &mut u64, out: &mut impl Write) -> Result<(), Stop> {
    for record in batch.records() {
        let record = record.map_err(|e| Stop::Failure(e.into()))?;
        if *left == 0 || record.offset >= end {
            break;
        }
        *left -= 1;
        let headers: Vec<_> = record.headers.iter().map(|header| (header.name, header.value)).collect();
        let shown = Shown {
            topic: &args.topic,
            partition: batch.partition,
            offset: record.offset,
            timestamp: record.timestamp,
            key: record.key,
            value: record.value,
            headers: &headers,
        };
        args.print(&shown, out).map_err(Stop::Output)?;
    }
    Ok(())
}

impl ConsumeArgs {
    fn print(&self, shown: &Shown<'_>, out: &mut impl Write) -> io::Result<()> {
        if self.json { writeln!(out, "{}", record_json(shown)) } else { self.format.write(out, shown) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_to_start_at_are_read() {
        for (text, place) in [
            ("earliest", SeekTo::Earliest),
            ("latest", SeekTo::Latest),
            ("0", SeekTo::Offset(0)),
            ("41", SeekTo::Offset(41)),
            ("@1700000000000", SeekTo::Timestamp(1_700_000_000_000)),
        ] {
            assert_eq!(text.parse(), Ok(From(place)), "{text}");
        }
        for text in ["", "-1", "@", "@-5", "beginning", "1.5"] {
            assert!(text.parse::<From>().is_err(), "{text}");
        }
    }
}
