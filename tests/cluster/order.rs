//! The judge of keyed records: each is there once, and those of a key are in the order in which they were sent.
//!
//! A key's records are numbered from 1 by the one producer that sends them. Where a topic gets more partitions, a key may go on in another one:
//! its records are in order within each
//! partition then, and each is in one of them only. Pure.

use std::collections::{BTreeMap, HashMap};

use corelane::client::partition_of_key;

/// Findings that are told; more of them say nothing more.
const MOST_TOLD: usize = 5;

/// What was read of all keys so far.
#[derive(Default)]
pub struct Order {
    keys: HashMap<u64, Seen>,
    findings: Vec<String>,
    read: u64,
    again: u64,
}

/// Of one key.
#[derive(Default)]
struct Seen {
    /// By partition: the number that was read last.
    last: BTreeMap<u32, u64>,
    /// A bit for each number.
    numbers: Vec<u64>,
}

impl Seen {
    /// False where it was seen before.
    fn insert(&mut self, number: u64) -> bool {
        let (word, bit) = ((number / 64) as usize, 1 << (number % 64));
        if self.numbers.len() <= word {
            self.numbers.resize(word + 1, 0);
        }
        let is_new = self.numbers[word] & bit == 0;
        self.numbers[word] |= bit;
        is_new
    }

    fn has(&self, number: u64) -> bool {
        self.numbers.get((number / 64) as usize).is_some_and(|word| word & (1 << (number % 64)) != 0)
    }
}

/// The bytes of a key.
pub fn key_bytes(key: u64) -> [u8; 8] {
    key.to_be_bytes()
}

impl Order {
    /// A record was read. The topic has or had so many partitions.
    pub fn read(&mut self, partition: u32, key: u64, number: u64, partitions: &[u32]) {
        self.read += 1;
        let seen = self.keys.entry(key).or_default();
        let last = seen.last.entry(partition).or_default();
        let before = std::mem::replace(last, number);
        if !partitions.iter().any(|count| partition_of_key(&key_bytes(key), *count) == partition) {
            self.findings.push(format!("record {number} of key {key} is in partition {partition}: its key never goes there"));
        }
        if !seen.insert(number) {
            self.again += 1;
            self.findings.push(format!("record {number} of key {key} is there twice, the second time in partition {partition}"));
        } else if number < before {
            self.findings.push(format!("record {number} of key {key} comes after its record {before} in partition {partition}"));
        }
        self.findings.truncate(MOST_TOLD);
    }

    /// Records that were read.
    pub fn count(&self) -> u64 {
        self.read
    }

    /// Records that were read another time.
    pub fn again(&self) -> u64 {
        self.again
    }

    /// All was read: everything that was acknowledged is there, and nothing that was never sent. By key: the last number, all up to which
    /// were acknowledged.
    pub fn judge(&self, sent: &HashMap<u64, u64>) -> Result<(), String> {
        let mut findings = self.findings.clone();
        for (key, last) in sent {
            let seen = self.keys.get(key);
            if let Some(lost) = (1..=*last).find(|number| !seen.is_some_and(|seen| seen.has(*number))) {
                findings.push(format!("record {lost} of key {key} is lost, of {last} that were acknowledged"));
            }
        }
        for (key, seen) in &self.keys {
            let most = seen.last.values().max().copied().unwrap_or(0);
            if most > sent.get(key).copied().unwrap_or(0) {
                findings.push(format!("record {most} of key {key} was never sent"));
            }
        }
        findings.truncate(MOST_TOLD);
        if findings.is_empty() { Ok(()) } else { Err(format!("of {} records read: {}", self.read, findings.join("; "))) }
    }
}

/// A loss, a duplicate, a wrong order, a wrong partition and a record of nobody are found, and what is right is not blamed.
pub fn finds_planted_mistakes() -> Result<(), String> {
    let key = 7;
    let home = partition_of_key(&key_bytes(key), 3);
    let later = partition_of_key(&key_bytes(key), 12);
    let other = (0..12).find(|partition| ![home, later].contains(partition)).ok_or("no other partition")?;
    if home == later {
        return Err("the key must move for this test".into());
    }
    let judge = |read: &[(u32, u64)], sent: u64| {
        let mut order = Order::default();
        read.iter().for_each(|(partition, number)| order.read(*partition, key, *number, &[3, 12]));
        order.judge(&HashMap::from([(key, sent)]))
    };
    judge(&[(home, 1), (home, 2), (later, 3), (later, 4)], 4)?;
    // A reader may come to the new partition first.
    judge(&[(later, 3), (home, 1), (home, 2)], 3)?;
    for (what, read, sent) in [
        ("lost", vec![(home, 1), (home, 3)], 3),
        ("lost", vec![(home, 1), (home, 2)], 3),
        ("twice", vec![(home, 1), (home, 2), (home, 2)], 2),
        ("twice", vec![(home, 1), (home, 2), (later, 2)], 2),
        ("comes after", vec![(home, 2), (home, 1)], 2),
        ("never goes", vec![(home, 1), (other, 2)], 2),
        ("never sent", vec![(home, 1), (home, 2)], 1),
    ] {
        match judge(&read, sent) {
            Err(finding) if finding.contains(what) => {}
            outcome => return Err(format!("{what} of {read:?}: {outcome:?}")),
        }
    }
    Ok(())
}
