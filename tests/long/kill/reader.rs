//! Reads every place on to its end, with a fresh client, into a ledger.

use std::time::Duration;

use corelane::client::{Client, OutOfRange, SeekTo};
use corelane::request::OffsetSpec;

use super::ledger::{Ledger, Seen};
use super::records::{PLACES, hash, id_of, place_name, place_of};

/// No batch comes for so long: something hangs.
const STALL: Duration = Duration::from_secs(30);

/// From where the ledger is to the ends of now. Every acknowledgement that was given before the call must be known to the ledger.
pub async fn read_to_ends(addresses: &str, ledger: &mut Ledger) -> Result<(), String> {
    let client = Client::builder(addresses).client_id("reader").connect().await.map_err(|e| e.to_string())?;
    let admin = client.admin();
    let mut consumer = client.consumer().out_of_range(OutOfRange::Earliest).build().map_err(|e| e.to_string())?;
    let mut ends = Vec::with_capacity(PLACES);
    let mut open = 0;
    for place in 0..PLACES {
        let (topic, partition) = place_name(place);
        let end = admin.offset(topic, partition, OffsetSpec::Latest).await.map_err(|e| e.to_string())?.0;
        let next = ledger.next(place);
        if end < next {
            return Err(format!("{topic} partition {partition} was read up to {next} before, and now it ends at {end}"));
        }
        if next < end {
            consumer.assign(topic, partition, SeekTo::Offset(next)).await.map_err(|e| e.to_string())?;
            open += 1;
        }
        ends.push(end);
    }
    while open > 0 {
        let batch = match tokio::time::timeout(STALL, consumer.next_batch()).await {
            Ok(Some(batch)) => batch.map_err(|e| e.to_string())?,
            Ok(None) => return Err("the consumer ended".into()),
            Err(_) => return Err(format!("no batch for {} s; still open: {:?}; ends: {ends:?}", STALL.as_secs(), consumer.positions())),
        };
        let place = place_of(&batch.topic, batch.partition).ok_or_else(|| format!("records of {}", batch.topic))?;
        for record in batch.records() {
            let record = record.map_err(|e| e.to_string())?;
            let value = record.value.unwrap_or_default();
            ledger.observe(Seen { place, offset: record.offset, id: id_of(value), hash: hash(value), len: value.len() as u32 });
        }
        if batch.next_offset() >= ends[place] {
            consumer.unassign(&batch.topic, batch.partition).map_err(|e| e.to_string())?;
            open -= 1;
        }
    }
    for place in 0..PLACES {
        let (topic, partition) = place_name(place);
        let start = admin.offset(topic, partition, OffsetSpec::Earliest).await.map_err(|e| e.to_string())?.0;
        ledger.reached_end(place, start);
    }
    Ok(())
}
