//! Reads the trace file of a running broker.

use corelane::shard::trace::TraceEvent;
use corelane::types::{TopicId, TopicPartition};

/// The events of a trace file, each with where it starts in the file. A last record that is cut (the broker was killed) is left out.
///
/// # Panics
/// When a record can't be read: the trace and this reader are not of one version.
pub fn parse(bytes: &[u8]) -> Vec<(usize, TraceEvent)> {
    let (mut events, mut at) = (Vec::new(), 0);
    while let Some(len) = bytes[at..].first_chunk() {
        let len = u32::from_le_bytes(*len) as usize;
        let Some(record) = bytes.get(at + 4..at + 4 + len) else { break };
        events.push((at, event(record)));
        at += 4 + len;
    }
    events
}

fn event(record: &[u8]) -> TraceEvent {
    let mut fields = Fields(&record[1..]);
    match record[0] {
        1 => TraceEvent::Create { path: fields.text() },
        2 => TraceEvent::CreateDir { path: fields.text() },
        3 => TraceEvent::WriteStart { id: fields.u64(), path: fields.text(), position: fields.u64(), bytes: fields.bytes() },
        4 => TraceEvent::WriteEnd { id: fields.u64() },
        5 => TraceEvent::SyncStart { id: fields.u64(), path: fields.text() },
        6 => TraceEvent::SyncDirStart { id: fields.u64(), path: fields.text() },
        7 => TraceEvent::SyncEnd { id: fields.u64() },
        8 => TraceEvent::Allocate { path: fields.text(), size: fields.u64() },
        9 => TraceEvent::SetLen { path: fields.text(), size: fields.u64() },
        10 => TraceEvent::Rename { from: fields.text(), to: fields.text() },
        11 => TraceEvent::Unlink { path: fields.text() },
        12 => TraceEvent::Acknowledge {
            partition: TopicPartition { topic: TopicId(fields.take()), partition: fields.u32() },
            base_offset: fields.u64() as i64,
            count: fields.u32(),
            crc: fields.u32(),
        },
        13 => TraceEvent::Mark { name: fields.text() },
        14 => TraceEvent::Topic { topic: TopicId(fields.take()), partitions: fields.u32() },
        15 => TraceEvent::Cut {
            partition: TopicPartition { topic: TopicId(fields.take()), partition: fields.u32() },
            offset: fields.u64() as i64,
            is_done: fields.take::<1>() == [1],
        },
        kind => panic!("a trace record of kind {kind}"),
    }
}

struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (field, rest) = self.0.split_first_chunk::<N>().expect("the record is long enough");
        self.0 = rest;
        *field
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }

    fn bytes(&mut self) -> Vec<u8> {
        let len = self.u32() as usize;
        let (bytes, rest) = self.0.split_at(len);
        self.0 = rest;
        bytes.to_vec()
    }

    fn text(&mut self) -> String {
        String::from_utf8(self.bytes()).expect("paths are text")
    }
}
