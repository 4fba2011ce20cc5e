//! `corelane consume --group`: as a member of a consumer group.

use std::io::{self, BufWriter, Write};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

use super::{ConsumeArgs, OUTPUT_BUFFER, Stop};
use crate::cli::exit::{Exit, Failure};
use crate::cli::format::Shown;
use crate::client::{Client, ClientError, ConsumerRecord, GroupConsumeError, GroupConsumer, OffsetReset};

/// What was printed is committed this often.
const COMMIT: Duration = Duration::from_secs(1);

impl From<GroupConsumeError> for Failure {
    fn from(error: GroupConsumeError) -> Failure {
        match error {
            GroupConsumeError::Partition(error) => error.into(),
            GroupConsumeError::Group(error) => error.into(),
        }
    }
}

impl From<ClientError> for Stop {
    fn from(error: ClientError) -> Stop {
        Stop::Failure(error.into())
    }
}

/// Prints records until it is told to stop, by a count or by a signal; then the group is left, with what was printed committed.
pub(super) async fn print_records(args: &ConsumeArgs, client: &Client, group: &str) -> Result<(), Stop> {
    let reset = if args.from_beginning { OffsetReset::Earliest } else { OffsetReset::Latest };
    let mut consumer = client.group_consumer(group).subscribe([&args.topic]).offset_reset(reset).manual_commit().build()?;
    let printed = print_until_stopped(args, &mut consumer).await;
    // What was not seen to be printed is not committed: it comes again.
    let committed = if printed.is_ok() { consumer.commit().await } else { Ok(()) };
    consumer.leave().await;
    printed?;
    Ok(committed?)
}

async fn print_until_stopped(args: &ConsumeArgs, consumer: &mut GroupConsumer) -> Result<(), Stop> {
    let no_signals = |error: io::Error| Stop::Failure(Failure::new(Exit::Host, format!("signals can't be caught: {error}")));
    let mut interrupt = signal(SignalKind::interrupt()).map_err(no_signals)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(no_signals)?;
    let mut out = BufWriter::with_capacity(OUTPUT_BUFFER, io::stdout().lock());
    let mut left = args.count.unwrap_or(u64::MAX);
    let mut commit_at = Instant::now() + COMMIT;
    while left > 0 {
        // Who watches sees each record as it comes; who pipes gets large writes while there is more.
        let ready = consumer.next_record().now_or_never();
        if ready.is_none() {
            out.flush().map_err(Stop::Output)?;
        }
        let record = match ready {
            Some(record) => Some(record),
            None => tokio::select! {
                record = consumer.next_record() => Some(record),
                () = tokio::time::sleep_until(commit_at) => None,
                _ = interrupt.recv() => break,
                _ = terminate.recv() => break,
            },
        };
        if let Some(record) = record {
            print_record(args, &record.map_err(|error| Stop::Failure(error.into()))?, &mut out).map_err(Stop::Output)?;
            left -= 1;
        }
        if commit_at <= Instant::now() {
            out.flush().map_err(Stop::Output)?;
            commit(consumer).await?;
            commit_at = Instant::now() + COMMIT;
            // A stream without end has no other place where a signal is seen.
            if interrupt.recv().now_or_never().is_some() || terminate.recv().now_or_never().is_some() {
                break;
            }
        }
    }
    out.flush().map_err(Stop::Output)
}

/// A rebalance may have overtaken it: then somebody else prints these records again.
async fn commit(consumer: &mut GroupConsumer) -> Result<(), Stop> {
    match consumer.commit().await {
        Err(error @ ClientError::Group { .. }) => {
            tracing::warn!(%error, "positions are not committed");
            Ok(())
        }
        done => Ok(done?),
    }
}

fn print_record(args: &ConsumeArgs, record: &ConsumerRecord, out: &mut impl Write) -> io::Result<()> {
    let headers: Vec<_> = record.headers().map(|header| (header.name, header.value)).collect();
    let shown = Shown {
        topic: &record.topic,
        partition: record.partition,
        offset: record.offset,
        timestamp: record.timestamp,
        key: record.key.as_deref(),
        value: record.value.as_deref(),
        headers: &headers,
    };
    args.print(&shown, out)
}
