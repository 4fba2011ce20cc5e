//! Sealed segments that rot under a running cluster: found when they are read, and had again from another replica.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use corelane::client::{NewTopic, ProducerRecord, SeekTo};
use corelane::log::paths;
use corelane::request::Acks;
use corelane::types::{Offset, TopicId, TopicPartition};
use serde_json::Value;

use super::network::{Network, Node};
use super::nodes::Nodes;
use super::{clients, replicas, view, wait_until};

/// How long a damaged segment may be there, once it was found.
const PATIENCE: Duration = Duration::from_secs(60);
/// Records of each topic, bytes of each, and of a segment: five or more are sealed.
const RECORDS: usize = 60;
const RECORD_BYTES: usize = 100_000;
const SEGMENT_BYTES: &str = "1048576";
/// Where a bit is flipped: within a record.
const AT: u64 = 300_001;

/// Rot on a follower, on a leader, on two replicas in different places, on all in the same place, and on the only replica.
pub fn damaged_segments_are_mended() -> Result<(), String> {
    let scratch = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).map_err(|e| e.to_string())?;
    let mut cluster = Cluster { nodes: Nodes::new(Network::loopback(3, 77)?, &scratch.path().join("nodes"))? };
    cluster.nodes.form()?;
    let outcome = cluster.play();
    outcome.map_err(|what| format!("{what}\n{}", cluster.nodes.last_words()))
}

struct Cluster {
    nodes: Nodes,
}

/// A topic of one partition with sealed segments.
struct Loaded {
    name: &'static str,
    id: TopicPartition,
    /// Each sealed segment with its bytes.
    sealed: Vec<(Offset, u64)>,
}

impl Cluster {
    fn play(&mut self) -> Result<(), String> {
        let three = self.load("three", 3)?;
        let healthy = |cluster: &Cluster| view::expect_healthy(&cluster.nodes.network, three.name, 3).map(|view| view[&0].clone());
        wait_until("all are in sync", PATIENCE, || healthy(self).map(drop))?;
        let (clean, is_well) = self.verify(three.name, true)?;
        if !is_well || clean["read"]["sound"] != 3 * three.sealed.len() {
            return Err(format!("{} sealed segments on three nodes, and read are: {clean}", three.sealed.len()));
        }

        // A follower: it has its leader's, and stays in sync.
        let before = healthy(self)?;
        let leader = before.leader.ok_or("no leader")?;
        let [one, other] = [1, 2].map(|turn| (leader - 1 + turn) % 3 + 1);
        self.flip(one, &three, 0)?;
        let (unread, is_well) = self.verify(three.name, false)?;
        if !is_well {
            return Err(format!("what nobody reads is not found, but: {unread}"));
        }
        self.expect_found(&three, &[one])?;
        self.wait_mended(&three, &[(one, 0)])?;
        let after = healthy(self)?;
        if after != before {
            return Err(format!("a damaged segment is all that changes, but {before:?} became {after:?}"));
        }

        // The leader: another one leads, and gives it what it lacks.
        self.flip(leader, &three, 1)?;
        self.expect_found(&three, &[leader])?;
        self.wait_mended(&three, &[(leader, 1)])?;
        let next = healthy(self)?.leader.ok_or("no leader")?;
        if next == leader {
            return Err(format!("node {leader} leads, which had a damaged segment"));
        }

        // Two, in different places: each has what the other lacks, and none is emptied for it.
        self.flip(one, &three, 2)?;
        self.flip(other, &three, 3)?;
        self.expect_found(&three, &[one, other])?;
        self.wait_mended(&three, &[(one, 2), (other, 3)])?;

        self.read_what_is_damaged(&three, one)?;

        // All of them in the same place: nobody has it, so nobody loses anything else for it.
        let lost = self.load("lost", 3)?;
        let nodes: Vec<Node> = self.nodes.network.nodes().collect();
        nodes.iter().try_for_each(|node| self.flip(*node, &lost, 0))?;
        let damaged = self.bytes(1, &lost, 0)?;
        self.expect_damaged(&lost, &nodes)?;
        for node in &nodes {
            if self.bytes(*node, &lost, 0)? != damaged || self.bytes(*node, &lost, 1)? != self.bytes(1, &lost, 1)? {
                return Err(format!("node {node} has other bytes than before"));
            }
        }
        view::expect_healthy(&self.nodes.network, lost.name, 3)?;

        // The only replica: it is said, and nothing is touched.
        let only = self.load("only", 1)?;
        let of_only = view::topic(&self.nodes.network, 1, only.name)?;
        let node = of_only[&0].leader.ok_or("no leader")?;
        self.flip(node, &only, 0)?;
        let damaged = self.bytes(node, &only, 0)?;
        self.expect_damaged(&only, &[node])?;
        if self.bytes(node, &only, 0)? != damaged {
            return Err("the only replica's segment was changed".into());
        }
        let status = self.status()?;
        let named = status["damaged"].as_array().is_some_and(|all| all.iter().any(|of| of["topic"] == only.name && of["node"] == node));
        if !named || status["health"] != "degraded" {
            return Err(format!("the status says nothing of the damage: {status}"));
        }
        self.append(only.name, 3)?;

        for node in self.nodes.network.nodes().collect::<Vec<_>>() {
            self.nodes.stop(node)?;
        }
        let stores: Vec<_> = self.nodes.network.nodes().map(|node| (node, self.nodes.data(node))).collect();
        replicas::compare(&stores, three.id.topic, 1).map(drop)
    }

    /// A leader finds out when somebody reads: who reads gets everything all the same, and the replica is mended, not emptied.
    fn read_what_is_damaged(&mut self, loaded: &Loaded, node: Node) -> Result<(), String> {
        // What it has in memory it would not read.
        self.nodes.stop(node)?;
        self.flip(node, loaded, 4)?;
        self.nodes.start(node)?;
        self.nodes.wait_ready(node)?;
        wait_until("all are in sync", PATIENCE, || view::expect_healthy(&self.nodes.network, loaded.name, 3).map(drop))?;
        let leads = view::topic(&self.nodes.network, node, loaded.name)?[&0].leader == Some(node);
        if !leads {
            self.command(&["cluster", "elect", loaded.name, "0", "--node", &node.to_string()])?;
        }
        let read = clients::as_client(&self.nodes.network, &self.nodes.bootstrap(), async |client| {
            let mut consumer = client.consumer().build().map_err(|e| e.to_string())?;
            consumer.assign_topic(loaded.name, SeekTo::Earliest).await.map_err(|e| e.to_string())?;
            for n in 0..RECORDS {
                let record = consumer.next_record().await.ok_or("no record")?.map_err(|e| e.to_string())?;
                if record.value.as_deref() != Some(&vec![n as u8; RECORD_BYTES][..]) {
                    return Err(format!("record {n} has another value"));
                }
            }
            Ok(())
        });
        read?;
        self.wait_mended(loaded, &[(node, 4)])?;
        let log = self.nodes.directory().join(format!("node{node}.log"));
        let said = std::fs::read_to_string(&log).map_err(|e| format!("{}: {e}", log.display()))?;
        let (is_found, is_emptied) = (said.contains("a sealed segment can't be read"), said.contains("is empty now"));
        if is_found && !is_emptied { Ok(()) } else { Err(format!("found by a read: {is_found}; emptied: {is_emptied}")) }
    }

    fn load(&self, name: &'static str, replicas: u16) -> Result<Loaded, String> {
        let new = NewTopic::new(name).partitions(1).replication_factor(replicas).config("segment.bytes", SEGMENT_BYTES);
        let topic: TopicId = self.nodes.create_topic(new)?;
        self.append(name, RECORDS)?;
        let id = TopicPartition { topic, partition: 0 };
        let node = view::topic(&self.nodes.network, 1, name)?[&0].leader.ok_or("no leader")?;
        let asked = clients::as_client(&self.nodes.network, &self.nodes.bootstrap(), async |client| {
            client.admin().replica_logs(node, &[id]).await.map_err(|e| e.to_string())
        })?;
        let log = asked.into_iter().next().ok_or("no log")?.outcome.map_err(|refusal| refusal.to_string())?;
        let sealed: Vec<_> = log.segments.iter().filter(|s| s.sealed).map(|s| (s.base_offset, s.bytes)).collect();
        let loaded = Loaded { name, id, sealed };
        if loaded.sealed.len() < 5 {
            return Err(format!("{} sealed segments of {name}", loaded.sealed.len()));
        }
        // They are read from the disk, so they must be there.
        let expected = loaded.sealed.len() * usize::from(replicas);
        wait_until("sealed segments are on the disks", PATIENCE, || {
            let (found, _) = self.verify(name, true)?;
            if found["read"]["sound"] == expected { Ok(()) } else { Err(format!("expected {expected}: {found}")) }
        })?;
        Ok(loaded)
    }

    fn append(&self, name: &str, records: usize) -> Result<(), String> {
        clients::as_client(&self.nodes.network, &self.nodes.bootstrap(), async |client| {
            let producer = client.producer().acks(Acks::All).build().map_err(|e| e.to_string())?;
            for n in 0..records {
                let value = vec![n as u8; RECORD_BYTES];
                let record = ProducerRecord::to(name).partition(0).value(&value);
                producer.send(record).await.map_err(|e| e.to_string())?;
            }
            Ok(())
        })
    }

    fn path(&self, node: Node, loaded: &Loaded, segment: usize) -> PathBuf {
        self.nodes.data(node).join(paths::segment(loaded.id, loaded.sealed[segment].0))
    }

    /// What counts of a segment's file.
    fn bytes(&self, node: Node, loaded: &Loaded, segment: usize) -> Result<Vec<u8>, String> {
        let path = self.path(node, loaded, segment);
        let mut bytes = std::fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        bytes.truncate(4096 + loaded.sealed[segment].1 as usize);
        Ok(bytes)
    }

    /// Flips a bit of a segment, on the disk.
    fn flip(&self, node: Node, loaded: &Loaded, segment: usize) -> Result<(), String> {
        let path = self.path(node, loaded, segment);
        let flip = || {
            let file = OpenOptions::new().read(true).write(true).open(&path)?;
            let mut byte = [0];
            file.read_exact_at(&mut byte, AT)?;
            file.write_all_at(&[byte[0] ^ 4], AT)?;
            file.sync_all()
        };
        flip().map_err(|e: std::io::Error| format!("{}: {e}", path.display()))
    }

    /// What a command says, and whether it ends well.
    fn command(&self, words: &[&str]) -> Result<(Value, bool), String> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_corelane"));
        let ended = command.args(words).args(["--json", "--broker", &self.nodes.bootstrap()]).output().map_err(|e| e.to_string())?;
        let said = String::from_utf8_lossy(&ended.stdout);
        let value = serde_json::from_str(said.trim()).map_err(|e| format!("{words:?}: {e}: {ended:?}"))?;
        Ok((value, ended.status.success()))
    }

    fn verify(&self, topic: &str, read: bool) -> Result<(Value, bool), String> {
        let words = ["cluster", "verify", "--topic", topic, "--read"];
        self.command(&words[..if read { 5 } else { 4 }])
    }

    fn status(&self) -> Result<Value, String> {
        self.command(&["cluster", "status"]).map(|(value, _)| value)
    }

    /// What is read is found, on these nodes and no other, whether it has been mended meanwhile or not.
    fn expect_found(&self, loaded: &Loaded, nodes: &[Node]) -> Result<(), String> {
        let (found, is_well) = self.verify(loaded.name, true)?;
        let both = ["damaged", "mended"].map(|kind| found["read"][kind].as_array().cloned().unwrap_or_default()).concat();
        let mut on: Vec<Node> = both.iter().filter_map(|of| of["node"].as_u64()).map(|node| node as Node).collect();
        on.sort_unstable();
        let mut expected = nodes.to_vec();
        expected.sort_unstable();
        let says_what = both.iter().all(|of| of["what"].as_str().is_some_and(|what| what.contains(".log at") && what.contains("CRC")));
        let is_right = on == expected && says_what && !is_well;
        if is_right { Ok(()) } else { Err(format!("damage on nodes {nodes:?}, and what is found is {found}")) }
    }

    /// As [`Cluster::expect_found`], and it stays.
    fn expect_damaged(&self, loaded: &Loaded, nodes: &[Node]) -> Result<(), String> {
        for _ in 0..2 {
            self.expect_found(loaded, nodes)?;
        }
        let (found, _) = self.verify(loaded.name, true)?;
        let damaged = found["read"]["damaged"].as_array().map_or(0, Vec::len);
        if damaged == nodes.len() { Ok(()) } else { Err(format!("{damaged} damaged segments, expected {}: {found}", nodes.len())) }
    }

    /// Each of these segments is what it is on the other nodes, and nothing is damaged any more.
    fn wait_mended(&self, loaded: &Loaded, places: &[(Node, usize)]) -> Result<(), String> {
        for (node, segment) in places {
            let other = node % 3 + 1;
            wait_until("a damaged segment is mended", PATIENCE, || {
                let same = self.bytes(*node, loaded, *segment)? == self.bytes(other, loaded, *segment)?;
                if same { Ok(()) } else { Err(format!("segment {segment} of node {node} is not that of node {other}")) }
            })?;
        }
        wait_until("all are in sync again", PATIENCE, || view::expect_healthy(&self.nodes.network, loaded.name, 3).map(drop))?;
        wait_until("nothing is damaged", PATIENCE, || {
            let (found, is_well) = self.verify(loaded.name, true)?;
            if is_well { Ok(()) } else { Err(format!("it says {found}")) }
        })?;
        let status = self.status()?;
        if status["damaged"] == serde_json::json!([]) { Ok(()) } else { Err(format!("the status still has damage: {status}")) }
    }
}
