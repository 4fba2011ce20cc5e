//! Clients: idempotent producers that wait for all replicas, consumers of one partition each, and what they saw.

use corelane::replication::{Millis, NodeId};
use corelane::types::Offset;

use crate::checker::{Event, History, Operation, Phase, Record};
use crate::disk::PartitionId;
use crate::random::Random;
use crate::wire::{Answer, CLIENTS, ClientRequest, Endpoint, Payload, Produced};

const TIMEOUT_MS: Millis = 400;
const GIVE_UP_MS: Millis = 4000;

/// What clients need of the world.
pub struct Surroundings<'a> {
    pub now: Millis,
    pub random: &'a mut Random,
    pub history: &'a mut History,
    pub out: &'a mut Vec<(Endpoint, Payload)>,
    pub nodes: u32,
    /// Who leads, as somebody who asks would hear.
    pub leader: &'a dyn Fn(PartitionId) -> Option<NodeId>,
    pub next_value: &'a mut u64,
    /// No new operations.
    pub ends: bool,
}

struct Sending {
    partition: PartitionId,
    values: Vec<u64>,
    began_at: Millis,
    /// Attempts that were not answered.
    outstanding: Vec<u64>,
    attempts: Vec<u64>,
    retry_at: Millis,
}

enum Task {
    Produce { producer: i64, sequences: Vec<u32>, sending: Option<Sending> },
    Consume { partition: PartitionId, position: Offset, assigned: bool, asked: Option<(u64, Millis)> },
    Latest { asked: Option<(u64, PartitionId, Millis)> },
}

pub struct Client {
    pub id: Endpoint,
    task: Task,
    next_operation: u64,
    next_producer: i64,
    idle_until: Millis,
    partitions: u32,
    pub operations: u64,
    pub indeterminate: u64,
    pub acknowledged: u64,
    pub read: u64,
}

impl Client {
    fn new(number: u32, partitions: u32, task: Task) -> Client {
        Client {
            id: CLIENTS + number,
            task,
            next_operation: 0,
            next_producer: i64::from(number) << 32,
            idle_until: 0,
            partitions,
            operations: 0,
            indeterminate: 0,
            acknowledged: 0,
            read: 0,
        }
    }

    pub fn producer(number: u32, partitions: u32) -> Client {
        let task = Task::Produce { producer: i64::from(number) << 32, sequences: vec![0; partitions as usize], sending: None };
        Client::new(number, partitions, task)
    }

    pub fn consumer(number: u32, partitions: u32, partition: PartitionId) -> Client {
        Client::new(number, partitions, Task::Consume { partition, position: 0, assigned: false, asked: None })
    }

    /// Asks where partitions end.
    pub fn watcher(number: u32, partitions: u32) -> Client {
        Client::new(number, partitions, Task::Latest { asked: None })
    }

    /// Nothing of it is on its way.
    pub fn is_idle(&self) -> bool {
        match &self.task {
            Task::Produce { sending, .. } => sending.is_none(),
            _ => true,
        }
    }

    pub fn tick(&mut self, around: &mut Surroundings<'_>) {
        match &mut self.task {
            Task::Produce { .. } => self.tick_producer(around),
            Task::Consume { .. } => self.tick_consumer(around),
            Task::Latest { asked } => {
                let now = around.now;
                if asked.is_some_and(|(_, _, at)| now < at + TIMEOUT_MS) || now < self.idle_until || around.ends {
                    return;
                }
                let partition = around.random.below(u64::from(self.partitions)) as PartitionId;
                self.next_operation += 1;
                self.operations += 1;
                *asked = Some((self.next_operation, partition, now));
                let to = target(partition, around);
                around.out.push((to, Payload::Client { operation: self.next_operation, request: ClientRequest::Latest { partition } }));
            }
        }
    }

    /// An answer; for a watcher: the partition, offset and epoch that it was told.
    pub fn handle(&mut self, operation: u64, answer: Answer, around: &mut Surroundings<'_>) -> Option<(PartitionId, Offset, i32)> {
        let now = around.now;
        match &mut self.task {
            Task::Produce { .. } => self.produced(operation, &answer, around),
            Task::Consume { partition, position, asked, .. } => {
                if asked.is_none_or(|(asked, _)| asked != operation) {
                    return None;
                }
                *asked = None;
                self.idle_until = now + around.random.between(10, 150);
                match answer {
                    Answer::Fetched(records) => {
                        if let Some((last, _)) = records.last() {
                            *position = last + 1;
                        }
                        self.read += records.len() as u64;
                        let partition = *partition;
                        let records = records.into_iter().map(|(offset, value)| Record { partition, offset, value }).collect();
                        push(around, self.id, Phase::Ok, Operation::Poll { records });
                    }
                    Answer::OutOfRange { start } => {
                        push(around, self.id, Phase::Fail, Operation::Poll { records: Vec::new() });
                        *position = start;
                        let positions = vec![(*partition, Some(start))];
                        push(around, self.id, Phase::Invoke, Operation::Assign { positions: positions.clone() });
                        push(around, self.id, Phase::Ok, Operation::Assign { positions });
                    }
                    _ => push(around, self.id, Phase::Fail, Operation::Poll { records: Vec::new() }),
                }
            }
            Task::Latest { asked } => {
                let (_, partition, _) = (*asked).filter(|(asked, _, _)| *asked == operation)?;
                *asked = None;
                self.idle_until = now + around.random.between(50, 300);
                if let Answer::Latest(Some((offset, epoch))) = answer {
                    return Some((partition, offset, epoch));
                }
            }
        }
        None
    }

    fn tick_consumer(&mut self, around: &mut Surroundings<'_>) {
        let Task::Consume { partition, position, assigned, asked } = &mut self.task else { return };
        let now = around.now;
        if !*assigned {
            *assigned = true;
            let positions = vec![(*partition, Some(0))];
            push(around, self.id, Phase::Invoke, Operation::Assign { positions: positions.clone() });
            push(around, self.id, Phase::Ok, Operation::Assign { positions });
        }
        if asked.is_some_and(|(_, at)| now < at + TIMEOUT_MS) || now < self.idle_until {
            return;
        }
        if asked.take().is_some() {
            push(around, self.id, Phase::Fail, Operation::Poll { records: Vec::new() });
        }
        if around.ends {
            return;
        }
        self.next_operation += 1;
        self.operations += 1;
        *asked = Some((self.next_operation, now));
        push(around, self.id, Phase::Invoke, Operation::Poll { records: Vec::new() });
        let request = ClientRequest::Fetch { partition: *partition, offset: *position };
        let to = target(*partition, around);
        around.out.push((to, Payload::Client { operation: self.next_operation, request }));
    }

    fn tick_producer(&mut self, around: &mut Surroundings<'_>) {
        let Task::Produce { producer, sequences, sending } = &mut self.task else { return };
        let now = around.now;
        match sending {
            None if now < self.idle_until || around.ends => {}
            None => {
                let partition = around.random.below(u64::from(self.partitions)) as PartitionId;
                let count = around.random.between(1, 3);
                let values: Vec<u64> = (*around.next_value..*around.next_value + count).collect();
                *around.next_value += count;
                self.operations += 1;
                for value in &values {
                    push(around, self.id, Phase::Invoke, send(*producer, partition, *value, None));
                }
                let began = Sending { partition, values, began_at: now, outstanding: Vec::new(), attempts: Vec::new(), retry_at: now };
                *sending = Some(began);
                self.attempt(around);
            }
            Some(open) if now >= open.began_at + GIVE_UP_MS => {
                for value in &open.values {
                    push(around, self.id, Phase::Info, send(*producer, open.partition, *value, None));
                }
                // What it sent may still arrive: it goes on as another producer, or the partition could not tell the next batch from this one.
                self.next_producer += 1;
                *producer = self.next_producer;
                sequences.iter_mut().for_each(|sequence| *sequence = 0);
                *sending = None;
                self.indeterminate += 1;
            }
            Some(open) if now >= open.retry_at => self.attempt(around),
            Some(_) => {}
        }
    }

    fn attempt(&mut self, around: &mut Surroundings<'_>) {
        let Task::Produce { producer, sequences, sending: Some(sending) } = &mut self.task else { return };
        self.next_operation += 1;
        sending.outstanding.push(self.next_operation);
        sending.attempts.push(self.next_operation);
        sending.retry_at = around.now + TIMEOUT_MS;
        let (partition, values) = (sending.partition, sending.values.clone());
        let request = ClientRequest::Produce { partition, producer: *producer, sequence: sequences[partition as usize], values };
        let to = target(partition, around);
        around.out.push((to, Payload::Client { operation: self.next_operation, request }));
    }

    fn produced(&mut self, operation: u64, answer: &Answer, around: &mut Surroundings<'_>) {
        let Task::Produce { producer, sequences, sending } = &mut self.task else { return };
        let Some(open) = sending.as_mut().filter(|open| open.attempts.contains(&operation)) else { return };
        match answer {
            Answer::Produced(Produced::At(base)) => {
                for (at, value) in open.values.iter().enumerate() {
                    push(around, self.id, Phase::Ok, send(*producer, open.partition, *value, Some(base + at as Offset)));
                }
                sequences[open.partition as usize] += 1;
                self.acknowledged += open.values.len() as u64;
                *sending = None;
                self.idle_until = around.now + around.random.between(5, 120);
            }
            Answer::Refused => {
                open.outstanding.retain(|attempt| *attempt != operation);
                open.retry_at = open.retry_at.min(around.now + 60);
                if open.outstanding.is_empty() && around.random.per_mille(200) {
                    for value in &open.values {
                        push(around, self.id, Phase::Fail, send(*producer, open.partition, *value, None));
                    }
                    *sending = None;
                    self.idle_until = around.now + around.random.between(50, 200);
                }
            }
            _ => {}
        }
    }
}

fn send(producer: i64, partition: PartitionId, value: u64, offset: Option<Offset>) -> Operation {
    Operation::Send { producer: Some(producer), partition, value, offset }
}

fn push(around: &mut Surroundings<'_>, client: Endpoint, phase: Phase, operation: Operation) {
    around.history.push(Event { time_us: around.now * 1000, client, phase, operation });
}

/// Mostly who leads, sometimes who does not, or not any more.
fn target(partition: PartitionId, around: &mut Surroundings<'_>) -> Endpoint {
    let any = around.random.between(1, u64::from(around.nodes)) as Endpoint;
    match (around.leader)(partition) {
        Some(leader) if around.random.per_mille(850) => leader,
        _ => any,
    }
}
