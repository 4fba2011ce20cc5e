//! Writes histories in few words.

use corelane::types::{Offset, ProducerId};

use crate::checker::{ClientId, Event, History, Operation, Partition, Phase, Record, Value};

/// The client that makes final reads.
pub const READER: ClientId = 999;

/// A history as it grows; every event is 10 us after the one before it.
#[derive(Default)]
pub struct Clients(pub History);

impl Clients {
    pub fn event(&mut self, client: ClientId, phase: Phase, operation: Operation) {
        let time_us = self.0.events().len() as u64 * 10;
        self.0.push(Event { time_us, client, phase, operation });
    }

    pub fn send(&mut self, producer: Option<ProducerId>, partition: Partition, value: Value) {
        let client = producer.unwrap_or(0) as ClientId;
        self.event(client, Phase::Invoke, Operation::Send { producer, partition, value, offset: None });
    }

    pub fn end(&mut self, phase: Phase, producer: Option<ProducerId>, partition: Partition, value: Value, offset: Option<Offset>) {
        let client = producer.unwrap_or(0) as ClientId;
        self.event(client, phase, Operation::Send { producer, partition, value, offset });
    }

    /// A send that is acknowledged at once.
    pub fn sent(&mut self, producer: Option<ProducerId>, partition: Partition, value: Value, offset: Offset) {
        self.send(producer, partition, value);
        self.end(Phase::Ok, producer, partition, value, Some(offset));
    }

    pub fn poll(&mut self, client: ClientId, records: &[(Partition, Offset, Value)]) {
        self.event(client, Phase::Invoke, Operation::Poll { records: vec![] });
        let records = records.iter().copied().map(Record::from).collect();
        self.event(client, Phase::Ok, Operation::Poll { records });
    }

    pub fn assign(&mut self, client: ClientId, positions: &[(Partition, Option<Offset>)]) {
        self.event(client, Phase::Ok, Operation::Assign { positions: positions.to_vec() });
    }

    pub fn subscribe(&mut self, client: ClientId) {
        self.event(client, Phase::Ok, Operation::Subscribe);
    }

    pub fn final_read(&mut self, partition: Partition, start: Offset, end: Offset, records: &[(Offset, Value)]) {
        self.event(READER, Phase::Ok, Operation::FinalRead { partition, start, end, records: records.to_vec() });
    }
}
