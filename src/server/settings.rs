//! The settings of `corelane serve`: read raw from flags and a TOML file, then made valid by type.
//!
//! [`RawSettings`] is what somebody wrote; flags win over the file. [`RawSettings::validate`] is the one place where a value is
//! judged; a [`ServeSettings`] can't hold an impossible one. Each error names the setting, what it takes and what came.
//! Not here: whether the host can do it (`host`).

use std::fmt;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Deserializer};

use super::host::Cpus;
use crate::group;
use crate::limits;
use crate::types::Durability;

/// Settings as written, in flags or a file; what is absent takes its default.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::Args))]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct RawSettings {
    /// Directory of the data; created if it is not there [default: ./corelane-data]
    #[cfg_attr(feature = "cli", arg(long, value_name = "DIR"))]
    pub data: Option<PathBuf>,
    /// Address of shard 0; shard i listens on the port + i, with port 0 each takes a free one [default: 127.0.0.1:9092]
    #[cfg_attr(feature = "cli", arg(long, value_name = "HOST:PORT"))]
    pub listen: Option<String>,
    /// Address that clients are told, if it differs from the one listened on
    #[cfg_attr(feature = "cli", arg(long, value_name = "HOST[:PORT]"))]
    pub advertise: Option<String>,
    /// How many of the shards' addresses clients are told; requests for the others pass through them [default: all, at most 16]
    #[cfg_attr(feature = "cli", arg(long, value_name = "N"))]
    pub advertised_endpoints: Option<u32>,
    /// Number of shards, one thread each [default: the CPUs this process may use, less one for the rest if there are more than two]
    #[cfg_attr(feature = "cli", arg(long, value_name = "N"))]
    pub shards: Option<u32>,
    /// Memory that all shards together may use, as 512M or 4G [default: 1G]
    #[cfg_attr(feature = "cli", arg(long, value_name = "SIZE"))]
    pub memory: Option<Size>,
    /// Address of the admin port: /metrics, /healthz, /readyz, /stat; none serves none [default: 127.0.0.1:9644]
    #[cfg_attr(feature = "cli", arg(long, value_name = "HOST:PORT|none"))]
    pub admin_listen: Option<String>,
    /// Id of this node in its cluster [default: 0, or what its data directory says]
    #[cfg_attr(feature = "cli", arg(long, value_name = "N"))]
    pub node_id: Option<u32>,
    /// Port for other nodes: consensus on this one, shard i's replication on the port + 1 + i [default: none, the node is alone]
    #[cfg_attr(feature = "cli", arg(long, value_name = "HOST:PORT"))]
    pub cluster_listen: Option<String>,
    /// Host that other nodes are told, if it differs from the one of --cluster-listen
    #[cfg_attr(feature = "cli", arg(long, value_name = "HOST"))]
    pub cluster_advertise: Option<String>,
    /// --cluster-listen address of a member of the cluster to join, several times for several; only looked at while the data directory is empty
    #[cfg_attr(feature = "cli", arg(long, value_name = "HOST:PORT"))]
    pub join: Vec<String>,
    /// How long a node that hears no leader of the consensus waits before an election, at least; the same on all nodes [default: 1000]
    #[cfg_attr(feature = "cli", arg(long, value_name = "MS"))]
    pub election_timeout_ms: Option<u64>,
    /// How often the leader of the consensus says that it lives; the same on all nodes [default: 450]
    #[cfg_attr(feature = "cli", arg(long, value_name = "MS"))]
    pub heartbeat_interval_ms: Option<u64>,
    /// How many nodes vote in the consensus, once there are so many: 3 or 5; the same on all nodes [default: 3]
    #[cfg_attr(feature = "cli", arg(long, value_name = "N"))]
    pub voters: Option<u64>,
    /// Rack of this node, or whatever fails as one: replicas are spread over them
    #[cfg_attr(feature = "cli", arg(long, value_name = "NAME"))]
    pub rack: Option<String>,
    /// How fast this node sends replicas that are not in sync what they lack, per second, as 50M; 0 is as fast as it goes [default: 100M]
    #[cfg_attr(feature = "cli", arg(long, value_name = "SIZE"))]
    pub catch_up_rate: Option<Size>,
    /// How fast sealed segments are read again in the background to see whether they are as they were written, per second, as 8M; 0 is not at all [default: 8M]
    #[cfg_attr(feature = "cli", arg(long, value_name = "SIZE"))]
    pub verify_rate: Option<Size>,
    /// When an append is acknowledged, unless its topic says otherwise: durable (synced), written, memory [default: durable]
    #[cfg_attr(feature = "cli", arg(long, value_name = "LEVEL"))]
    pub durability: Option<String>,
    /// Whether a Kafka client's use of a topic that does not exist creates it: true or false [default: true]
    #[cfg_attr(feature = "cli", arg(long, value_name = "BOOL"))]
    pub auto_create_topics: Option<bool>,
    /// How long an empty consumer group waits for more members before its first rebalance, again for each that comes [default: 3000]
    #[cfg_attr(feature = "cli", arg(long, value_name = "MS"))]
    pub group_initial_rebalance_delay_ms: Option<u64>,
    /// Shortest session timeout that a group's member may ask for [default: 6000]
    #[cfg_attr(feature = "cli", arg(long, value_name = "MS"))]
    pub group_min_session_timeout_ms: Option<u64>,
    /// Longest session timeout that a group's member may ask for [default: 1800000]
    #[cfg_attr(feature = "cli", arg(long, value_name = "MS"))]
    pub group_max_session_timeout_ms: Option<u64>,
    /// Most members of a consumer group [default: 10000]
    #[cfg_attr(feature = "cli", arg(long, value_name = "N"))]
    pub group_max_size: Option<u64>,
    /// How long the positions of a group without members are kept [default: 10080]
    #[cfg_attr(feature = "cli", arg(long, value_name = "MINUTES"))]
    pub offsets_retention_minutes: Option<u64>,
    /// Replicas of the topic of consumer groups when it is made; fewer where there are fewer nodes [default: 3]
    #[cfg_attr(feature = "cli", arg(long, value_name = "N"))]
    pub offsets_topic_replication_factor: Option<u64>,
    /// How long a shard with nothing to do spins before it sleeps: lower latency for a busy CPU [default: 0]
    #[cfg_attr(feature = "cli", arg(long, value_name = "MICROS"))]
    pub spin: Option<u64>,
    /// Use the page cache instead of direct I/O, for file systems that can't do direct I/O
    #[cfg_attr(feature = "cli", arg(long))]
    pub buffered_io: bool,
    /// Listen on other than loopback addresses although there is no encryption and no authentication yet
    #[cfg_attr(feature = "cli", arg(long))]
    pub insecure: bool,
}

/// Settings of a broker, valid.
#[derive(Clone, Debug, PartialEq)]
pub struct ServeSettings {
    /// Directory of the data.
    pub data: PathBuf,
    /// Address of shard 0; the port may be 0.
    pub listen: SocketAddr,
    /// Host that clients are told.
    pub advertised_host: String,
    /// Port that clients are told for shard 0; `None` is the one listened on.
    pub advertised_port: Option<u16>,
    /// How many shards clients are told of, 1 to the number of shards.
    pub advertised_endpoints: u32,
    /// The CPU of each shard; a CPU is there twice only if somebody asked for more shards than CPUs.
    pub shard_cpus: Vec<usize>,
    /// CPUs that no shard has.
    pub spare_cpus: Vec<usize>,
    /// Budget of all shards together, bytes.
    pub memory_bytes: u64,
    /// The admin port; `None` serves none.
    pub admin_listen: Option<SocketAddr>,
    /// The id that this node is to have; `None`: what its data directory says.
    pub node_id: Option<u32>,
    /// The other nodes; `None` of a node that is alone.
    pub cluster: Option<ClusterSettings>,
    /// Its rack.
    pub rack: Option<String>,
    /// How fast replicas that are not in sync are sent what they lack, bytes per second; 0 is as fast as it goes.
    pub catch_up_bytes_per_s: u64,
    /// How fast sealed segments are read again in the background, bytes per second; 0 is not at all.
    pub verify_bytes_per_s: u64,
    /// The default of topics.
    pub durability: Durability,
    /// Metadata asked for a topic that does not exist may create it.
    pub auto_create_topics: bool,
    /// What consumer groups are held to.
    pub groups: group::Settings,
    /// How long an idle shard spins; zero does not.
    pub spin: Duration,
    /// Page cache instead of direct I/O.
    pub buffered_io: bool,
}

/// A node's place among others.
#[derive(Clone, Debug, PartialEq)]
pub struct ClusterSettings {
    /// The port for consensus; replication is on those above it.
    pub listen: SocketAddr,
    /// Host that other nodes are told.
    pub advertised_host: String,
    /// Members of the cluster to join.
    pub join: Vec<String>,
    /// How often the leader of the consensus says that it lives.
    pub heartbeat: Duration,
    /// How long a voter that hears no leader waits at least.
    pub election: Duration,
    /// How many nodes vote, once there are so many.
    pub voters: usize,
}

impl ClusterSettings {
    /// Where a shard takes replication.
    pub fn replication(&self, shard: u32) -> SocketAddr {
        SocketAddr::new(self.listen.ip(), self.listen.port() + 1 + shard as u16)
    }
}

/// What one shard needs to know of the settings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ShardSettings {
    /// Which shard.
    pub shard: u32,
    /// Of how many.
    pub shards: u32,
    /// The CPU that it is pinned to.
    pub cpu: usize,
    /// Where it listens; the port may be 0.
    pub listen: SocketAddr,
    /// Its part of the memory, bytes.
    pub memory_bytes: u64,
    /// The default of topics.
    pub durability: Durability,
    /// Metadata asked for a topic that does not exist may create it.
    pub auto_create_topics: bool,
    /// What consumer groups are held to.
    pub groups: group::Settings,
    /// How long it spins when idle.
    pub spin: Duration,
    /// Page cache instead of direct I/O.
    pub buffered_io: bool,
}

/// A setting that can't be.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// A value of the wrong kind or out of range.
    #[error("{name} must be {expected}, not {actual:?}")]
    Value {
        /// The flag.
        name: &'static str,
        /// What it takes.
        expected: String,
        /// What came.
        actual: String,
    },
    /// A combination that makes no sense.
    #[error("{0}")]
    Conflict(String),
    /// Clear text on the network without saying so.
    #[error(
        "{name} {address} can be reached from other machines, and there is no encryption or authentication yet; add --insecure if that is what you want"
    )]
    Insecure {
        /// The flag.
        name: &'static str,
        /// The address.
        address: SocketAddr,
    },
    /// The file of `--config`.
    #[error("{}: {message}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
}

impl RawSettings {
    /// Reads a TOML file whose keys are the flags' names.
    pub fn read(path: &Path) -> Result<RawSettings, SettingsError> {
        let failed = |message: String| SettingsError::File { path: path.into(), message };
        let text = std::fs::read_to_string(path).map_err(|e| failed(e.to_string()))?;
        toml::from_str(&text).map_err(|e| failed(e.to_string().trim_end().to_owned()))
    }

    /// These settings, and those of a file where nothing is said here.
    pub fn or(self, file: RawSettings) -> RawSettings {
        RawSettings {
            data: self.data.or(file.data),
            listen: self.listen.or(file.listen),
            advertise: self.advertise.or(file.advertise),
            advertised_endpoints: self.advertised_endpoints.or(file.advertised_endpoints),
            shards: self.shards.or(file.shards),
            memory: self.memory.or(file.memory),
            admin_listen: self.admin_listen.or(file.admin_listen),
            node_id: self.node_id.or(file.node_id),
            cluster_listen: self.cluster_listen.or(file.cluster_listen),
            cluster_advertise: self.cluster_advertise.or(file.cluster_advertise),
            join: if self.join.is_empty() { file.join } else { self.join },
            election_timeout_ms: self.election_timeout_ms.or(file.election_timeout_ms),
            heartbeat_interval_ms: self.heartbeat_interval_ms.or(file.heartbeat_interval_ms),
            voters: self.voters.or(file.voters),
            rack: self.rack.or(file.rack),
            catch_up_rate: self.catch_up_rate.or(file.catch_up_rate),
            verify_rate: self.verify_rate.or(file.verify_rate),
            durability: self.durability.or(file.durability),
            auto_create_topics: self.auto_create_topics.or(file.auto_create_topics),
            group_initial_rebalance_delay_ms: self.group_initial_rebalance_delay_ms.or(file.group_initial_rebalance_delay_ms),
            group_min_session_timeout_ms: self.group_min_session_timeout_ms.or(file.group_min_session_timeout_ms),
            group_max_session_timeout_ms: self.group_max_session_timeout_ms.or(file.group_max_session_timeout_ms),
            group_max_size: self.group_max_size.or(file.group_max_size),
            offsets_retention_minutes: self.offsets_retention_minutes.or(file.offsets_retention_minutes),
            offsets_topic_replication_factor: self.offsets_topic_replication_factor.or(file.offsets_topic_replication_factor),
            spin: self.spin.or(file.spin),
            buffered_io: self.buffered_io || file.buffered_io,
            insecure: self.insecure || file.insecure,
        }
    }

    /// The settings that follow, on a host with these CPUs.
    pub fn validate(self, cpus: &Cpus) -> Result<ServeSettings, SettingsError> {
        let (listen_host, listen) = address("--listen", self.listen.as_deref().unwrap_or(DEFAULT_LISTEN))?;
        let admin_listen = match self.admin_listen.as_deref().unwrap_or(DEFAULT_ADMIN_LISTEN) {
            "none" => None,
            text => Some(address("--admin-listen", text)?.1),
        };
        if !self.insecure {
            check_loopback("--listen", Some(listen))?;
            check_loopback("--admin-listen", admin_listen)?;
        }
        let shards = self.shards.unwrap_or(cpus.default_shards());
        in_range("--shards", u64::from(shards), 1, u64::from(limits::MAX_SHARDS))?;
        check_ports(listen, admin_listen, shards)?;
        let (advertised_host, advertised_port) = advertised(self.advertise.as_deref(), listen_host, listen)?;
        if let Some(port) = advertised_port {
            check_port_range("--advertise", port, shards)?;
        }
        let advertised_endpoints = self.advertised_endpoints.unwrap_or(shards.min(limits::DEFAULT_ADVERTISED_ENDPOINTS));
        in_range("--advertised-endpoints", u64::from(advertised_endpoints), 1, u64::from(shards))?;
        let memory = self.memory.unwrap_or(Size(limits::DEFAULT_MEMORY));
        check_memory(memory, shards)?;
        let durability = self.durability.as_deref().unwrap_or(Durability::default().name());
        let groups = self.groups()?;
        let spin_us = self.spin.unwrap_or(0);
        in_range("--spin", spin_us, 0, limits::MAX_SPIN_US)?;
        if spin_us > 0 && shards as usize > cpus.ids.len() {
            return Err(SettingsError::Conflict(format!(
                "--spin with {shards} shards on {} CPUs would make shards that share a CPU wait for each other",
                cpus.ids.len()
            )));
        }
        let node_id =
            self.node_id.map(|id| in_range("--node-id", u64::from(id), 0, u64::from(limits::MAX_NODE_ID)).map(|()| id)).transpose()?;
        let rack = self.rack.clone().map(rack).transpose()?;
        let cluster = self.cluster(listen, admin_listen, shards)?;
        let (shard_cpus, spare_cpus) = cpus.assign(shards);
        Ok(ServeSettings {
            data: self.data.unwrap_or_else(|| DEFAULT_DATA.into()),
            listen,
            advertised_host,
            advertised_port,
            advertised_endpoints,
            shard_cpus,
            spare_cpus,
            memory_bytes: memory.0,
            admin_listen,
            node_id,
            cluster,
            rack,
            catch_up_bytes_per_s: self.catch_up_rate.map_or(limits::CATCH_UP_BYTES_PER_S, |rate| rate.0),
            verify_bytes_per_s: self.verify_rate.map_or(limits::VERIFY_BYTES_PER_S, |rate| rate.0),
            durability: durability.parse().map_err(|_| value("--durability", "durable, written or memory", durability))?,
            auto_create_topics: self.auto_create_topics.unwrap_or(true),
            groups,
            spin: Duration::from_micros(spin_us),
            buffered_io: self.buffered_io,
        })
    }
}

impl RawSettings {
    fn cluster(&self, listen: SocketAddr, admin: Option<SocketAddr>, shards: u32) -> Result<Option<ClusterSettings>, SettingsError> {
        let Some(text) = self.cluster_listen.as_deref() else {
            let lonely = [
                ("--join", !self.join.is_empty()),
                ("--cluster-advertise", self.cluster_advertise.is_some()),
                ("--election-timeout-ms", self.election_timeout_ms.is_some()),
                ("--heartbeat-interval-ms", self.heartbeat_interval_ms.is_some()),
                ("--voters", self.voters.is_some()),
            ];
            return match lonely.iter().find(|(_, given)| *given) {
                Some((name, _)) => Err(SettingsError::Conflict(format!(
                    "{name} is for a node of a cluster: say with --cluster-listen where others find it"
                ))),
                None => Ok(None),
            };
        };
        let (host, own) = address("--cluster-listen", text)?;
        if !self.insecure {
            check_loopback("--cluster-listen", Some(own))?;
        }
        if own.port() == 0 {
            return Err(value("--cluster-listen", "a port that others can be told, not 0", text));
        }
        check_port_range("--cluster-listen", own.port(), shards + 1)?;
        check_apart(own, shards, listen, admin)?;
        let advertised_host = match self.cluster_advertise.as_deref() {
            Some(host)
                if !host.is_empty() && host.len() <= limits::MAX_HOST_NAME && !host.contains(|c: char| c.is_whitespace() || c == '/') =>
            {
                unbracketed(host).to_owned()
            }
            Some(other) => return Err(value("--cluster-advertise", "a host that other nodes can reach", other)),
            None if own.ip().is_unspecified() => {
                return Err(SettingsError::Conflict(format!(
                    "--cluster-listen {own} is every address: say with --cluster-advertise which one other nodes shall use"
                )));
            }
            None => host,
        };
        for member in &self.join {
            let is_one =
                member.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0));
            if !is_one {
                return Err(value("--join", "HOST:PORT, the --cluster-listen of a member", member));
            }
        }
        let (heartbeat, election) = self.consensus_times()?;
        let voters = match self.voters {
            None => limits::CONSENSUS_VOTERS,
            Some(voters @ (3 | 5)) => voters as usize,
            Some(other) => return Err(value("--voters", "3 or 5", other)),
        };
        Ok(Some(ClusterSettings { listen: own, advertised_host, join: self.join.clone(), heartbeat, election, voters }))
    }

    fn consensus_times(&self) -> Result<(Duration, Duration), SettingsError> {
        let election = self.election_timeout_ms.unwrap_or(limits::CONSENSUS_ELECTION_MS);
        in_range("--election-timeout-ms", election, limits::CONSENSUS_ELECTION_MS, limits::MAX_CONSENSUS_ELECTION_MS)?;
        let heartbeat = self.heartbeat_interval_ms.unwrap_or(limits::CONSENSUS_HEARTBEAT_MS);
        if !(limits::MIN_CONSENSUS_HEARTBEAT_MS..=election / 2).contains(&heartbeat) {
            let expected = format!("{} to {}, half of --election-timeout-ms", limits::MIN_CONSENSUS_HEARTBEAT_MS, election / 2);
            return Err(value("--heartbeat-interval-ms", expected, heartbeat));
        }
        Ok((Duration::from_millis(heartbeat), Duration::from_millis(election)))
    }

    fn groups(&self) -> Result<group::Settings, SettingsError> {
        let defaults = group::Settings::default();
        let ms = |name, given: Option<u64>, default: i32, least| match given {
            Some(given) => in_range(name, given, least, i32::MAX as u64).map(|()| given as i32),
            None => Ok(default),
        };
        let least = ms("--group-min-session-timeout-ms", self.group_min_session_timeout_ms, defaults.min_session_timeout_ms, 1)?;
        let most = ms("--group-max-session-timeout-ms", self.group_max_session_timeout_ms, defaults.max_session_timeout_ms, 1)?;
        if least > most {
            let text = format!("--group-min-session-timeout-ms {least} is more than --group-max-session-timeout-ms {most}");
            return Err(SettingsError::Conflict(text));
        }
        let members = self.group_max_size.unwrap_or(defaults.max_members as u64);
        in_range("--group-max-size", members, 1, limits::MAX_GROUP_MEMBERS as u64)?;
        let delay =
            ms("--group-initial-rebalance-delay-ms", self.group_initial_rebalance_delay_ms, defaults.initial_rebalance_delay_ms, 0)?;
        const MINUTE_MS: i64 = 60_000;
        let retention_ms = match self.offsets_retention_minutes {
            Some(minutes) => {
                in_range("--offsets-retention-minutes", minutes, 1, i32::MAX as u64)?;
                minutes as i64 * MINUTE_MS
            }
            None => defaults.offsets_retention_ms,
        };
        let replicas = self.offsets_topic_replication_factor.unwrap_or(defaults.offsets_replication_factor.into());
        in_range("--offsets-topic-replication-factor", replicas, 1, limits::MAX_REPLICAS as u64)?;
        Ok(group::Settings {
            min_session_timeout_ms: least,
            max_session_timeout_ms: most,
            initial_rebalance_delay_ms: delay,
            max_members: members as usize,
            offsets_retention_ms: retention_ms,
            offsets_replication_factor: replicas as u16,
            ..defaults
        })
    }
}

const DEFAULT_DATA: &str = "./corelane-data";
const DEFAULT_LISTEN: &str = "127.0.0.1:9092";
const DEFAULT_ADMIN_LISTEN: &str = "127.0.0.1:9644";

impl ServeSettings {
    /// Number of shards.
    pub fn shards(&self) -> u32 {
        self.shard_cpus.len() as u32
    }

    /// The part of each shard.
    pub fn per_shard(&self) -> impl Iterator<Item = ShardSettings> + '_ {
        let shards = self.shards();
        (0..shards).zip(&self.shard_cpus).map(move |(shard, cpu)| {
            let mut listen = self.listen;
            if listen.port() != 0 {
                listen.set_port(listen.port() + shard as u16);
            }
            ShardSettings {
                shard,
                shards,
                cpu: *cpu,
                listen,
                memory_bytes: self.memory_bytes / u64::from(shards),
                durability: self.durability,
                auto_create_topics: self.auto_create_topics,
                groups: self.groups,
                spin: self.spin,
                buffered_io: self.buffered_io,
            }
        })
    }

    /// Host and port that clients are told for a shard that listens on `port`.
    pub fn advertised(&self, shard: u32, port: u16) -> (&str, u16) {
        (&self.advertised_host, self.advertised_port.map_or(port, |first| first + shard as u16))
    }
}

fn value(name: &'static str, expected: impl Into<String>, actual: impl fmt::Display) -> SettingsError {
    SettingsError::Value { name, expected: expected.into(), actual: actual.to_string() }
}

fn in_range(name: &'static str, number: u64, least: u64, most: u64) -> Result<(), SettingsError> {
    if (least..=most).contains(&number) { Ok(()) } else { Err(value(name, format!("{least} to {most}"), number)) }
}

/// The host as written, and the address that it resolves to.
fn address(name: &'static str, text: &str) -> Result<(String, SocketAddr), SettingsError> {
    let wrong = || value(name, "HOST:PORT", text);
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let port: u16 = port.parse().map_err(|_| wrong())?;
    let host = unbracketed(host);
    if host.is_empty() {
        return Err(wrong());
    }
    let mut resolved = (host, port).to_socket_addrs().map_err(|e| value(name, format!("an address that resolves ({e})"), text))?;
    Ok((host.to_owned(), resolved.next().ok_or_else(wrong)?))
}

fn unbracketed(host: &str) -> &str {
    host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host)
}

fn check_loopback(name: &'static str, address: Option<SocketAddr>) -> Result<(), SettingsError> {
    match address {
        Some(address) if !address.ip().is_loopback() => Err(SettingsError::Insecure { name, address }),
        _ => Ok(()),
    }
}

fn check_port_range(name: &'static str, first: u16, shards: u32) -> Result<(), SettingsError> {
    if first != 0 && u32::from(first) + shards - 1 > u32::from(u16::MAX) {
        let highest = u32::from(u16::MAX) + 1 - shards;
        return Err(value(name, format!("a port up to {highest}, so that {shards} shards find room above it"), first));
    }
    Ok(())
}

fn check_ports(listen: SocketAddr, admin: Option<SocketAddr>, shards: u32) -> Result<(), SettingsError> {
    check_port_range("--listen", listen.port(), shards)?;
    let Some(admin) = admin else { return Ok(()) };
    let taken = u32::from(listen.port())..u32::from(listen.port()) + shards;
    if listen.port() != 0 && listen.ip() == admin.ip() && taken.contains(&u32::from(admin.port())) {
        return Err(SettingsError::Conflict(format!(
            "--admin-listen {admin} is one of the shards' ports, {} to {}",
            taken.start,
            taken.end - 1
        )));
    }
    Ok(())
}

fn rack(text: String) -> Result<String, SettingsError> {
    match (1..=limits::MAX_HOST_NAME).contains(&text.len()) {
        true => Ok(text),
        false => Err(value("--rack", format!("a name of 1 to {} bytes", limits::MAX_HOST_NAME), text)),
    }
}

/// The ports for other nodes are none of those for clients and administrators.
fn check_apart(cluster: SocketAddr, shards: u32, listen: SocketAddr, admin: Option<SocketAddr>) -> Result<(), SettingsError> {
    let range = |first: SocketAddr, count: u32| (first.ip(), u32::from(first.port())..u32::from(first.port()) + count);
    let own = range(cluster, shards + 1);
    let others = [Some(("--listen", range(listen, shards))), admin.map(|admin| ("--admin-listen", range(admin, 1)))];
    for (name, (ip, ports)) in others.into_iter().flatten() {
        let same_host = ip == own.0 || ip.is_unspecified() || own.0.is_unspecified();
        if same_host && ports.start != 0 && ports.start < own.1.end && own.1.start < ports.end {
            return Err(SettingsError::Conflict(format!(
                "--cluster-listen {cluster} takes the ports {} to {}, {name} {} to {}: they must be apart",
                own.1.start,
                own.1.end - 1,
                ports.start,
                ports.end - 1
            )));
        }
    }
    Ok(())
}

fn advertised(text: Option<&str>, listen_host: String, listen: SocketAddr) -> Result<(String, Option<u16>), SettingsError> {
    let Some(text) = text else {
        if listen.ip().is_unspecified() {
            return Err(SettingsError::Conflict(format!(
                "--listen {listen} is every address: say with --advertise which one clients shall use"
            )));
        }
        return Ok((listen_host, None));
    };
    let wrong = || value("--advertise", "HOST or HOST:PORT that clients can reach", text);
    // A bare IPv6 address has colons and no port.
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if text.parse::<IpAddr>().is_err() => {
            (host, Some(port.parse::<u16>().ok().filter(|p| *p > 0).ok_or_else(wrong)?))
        }
        _ => (text, None),
    };
    let host = unbracketed(host);
    let unspecified = host.parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified());
    if host.is_empty() || unspecified || host.len() > limits::MAX_HOST_NAME || host.contains(|c: char| c.is_whitespace() || c == '/') {
        return Err(wrong());
    }
    Ok((host.to_owned(), port))
}

fn check_memory(memory: Size, shards: u32) -> Result<(), SettingsError> {
    let least = limits::MIN_SHARD_MEMORY * u64::from(shards);
    if memory.0 < least {
        return Err(value("--memory", format!("at least {} for {shards} shard(s)", Size(least)), memory));
    }
    Ok(())
}

/// A number of bytes, written as `1073741824`, `512M` or `1G` (powers of 1024).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Size(pub u64);

/// Text that is no size.
#[derive(Debug, thiserror::Error)]
#[error("a size is a number, with K, M, G or T behind it or not, as 512M; not {0:?}")]
pub struct SizeError(String);

const UNITS: [(char, u32); 4] = [('K', 10), ('M', 20), ('G', 30), ('T', 40)];

impl std::str::FromStr for Size {
    type Err = SizeError;
    fn from_str(text: &str) -> Result<Size, SizeError> {
        let wrong = || SizeError(text.into());
        let upper = text.trim().to_ascii_uppercase();
        let plain = upper.strip_suffix("IB").or(upper.strip_suffix('B')).unwrap_or(&upper);
        let unit = UNITS.iter().find(|(letter, _)| plain.ends_with(*letter));
        let number: u64 = plain.trim_end_matches(unit.map_or('B', |u| u.0)).parse().map_err(|_| wrong())?;
        number.checked_mul(1 << unit.map_or(0, |u| u.1)).map(Size).ok_or_else(wrong)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match UNITS.iter().rev().find(|(_, bits)| self.0 > 0 && self.0.is_multiple_of(1 << bits)) {
            Some((letter, bits)) => write!(f, "{}{letter}", self.0 >> bits),
            None => write!(f, "{}", self.0),
        }
    }
}

impl<'de> Deserialize<'de> for Size {
    /// From a number or from text.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Size, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Number(u64),
            Text(String),
        }
        match Written::deserialize(deserializer)? {
            Written::Number(bytes) => Ok(Size(bytes)),
            Written::Text(text) => text.parse().map_err(serde::de::Error::custom),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpus(count: usize) -> Cpus {
        Cpus { ids: (0..count).collect(), quota: None }
    }

    fn raw() -> RawSettings {
        RawSettings::default()
    }

    fn refused(raw: RawSettings) -> String {
        raw.validate(&cpus(4)).unwrap_err().to_string()
    }

    #[test]
    fn defaults_are_those_of_the_manual() {
        let settings = raw().validate(&cpus(4)).unwrap();
        let expected = ServeSettings {
            node_id: None,
            cluster: None,
            rack: None,
            catch_up_bytes_per_s: limits::CATCH_UP_BYTES_PER_S,
            verify_bytes_per_s: limits::VERIFY_BYTES_PER_S,
            data: "./corelane-data".into(),
            listen: "127.0.0.1:9092".parse().unwrap(),
            advertised_host: "127.0.0.1".into(),
            advertised_port: None,
            advertised_endpoints: 3,
            shard_cpus: vec![0, 1, 2],
            spare_cpus: vec![3],
            memory_bytes: 1 << 30,
            admin_listen: Some("127.0.0.1:9644".parse().unwrap()),
            durability: Durability::Durable,
            auto_create_topics: true,
            groups: group::Settings::default(),
            spin: Duration::ZERO,
            buffered_io: false,
        };
        assert_eq!(settings, expected);
    }

    #[test]
    fn each_shard_receives_its_part() {
        let settings = RawSettings { shards: Some(2), advertise: Some("broker.example:19092".into()), ..raw() }.validate(&cpus(2)).unwrap();
        let parts: Vec<_> = settings.per_shard().collect();
        assert_eq!((parts[1].shard, parts[1].cpu, parts[1].listen.port(), parts[1].memory_bytes), (1, 1, 9093, 1 << 29));
        assert_eq!(settings.advertised(1, 9093), ("broker.example", 19093));
        let free = RawSettings { listen: Some("127.0.0.1:0".into()), ..raw() }.validate(&cpus(2)).unwrap();
        assert!(free.per_shard().all(|s| s.listen.port() == 0));
        assert_eq!(free.advertised(1, 4321), ("127.0.0.1", 4321));
    }

    #[test]
    fn wrong_values_say_what_is_right() {
        for (raw, expected) in [
            (RawSettings { listen: Some("9092".into()), ..raw() }, "--listen must be HOST:PORT, not \"9092\""),
            (RawSettings { listen: Some("127.0.0.1:x".into()), ..raw() }, "--listen must be HOST:PORT, not \"127.0.0.1:x\""),
            (
                RawSettings { listen: Some("127.0.0.1:65535".into()), shards: Some(3), ..raw() },
                "--listen must be a port up to 65533, so that 3 shards find room above it, not \"65535\"",
            ),
            (RawSettings { shards: Some(0), ..raw() }, "--shards must be 1 to 1024, not \"0\""),
            (RawSettings { durability: Some("fsync".into()), ..raw() }, "--durability must be durable, written or memory, not \"fsync\""),
            (RawSettings { advertised_endpoints: Some(3), shards: Some(2), ..raw() }, "--advertised-endpoints must be 1 to 2, not \"3\""),
            (
                RawSettings { memory: Some(Size(1 << 20)), shards: Some(2), ..raw() },
                "--memory must be at least 64M for 2 shard(s), not \"1M\"",
            ),
            (RawSettings { spin: Some(u64::MAX), ..raw() }, "--spin must be 0 to 100000, not \"18446744073709551615\""),
            (
                RawSettings { admin_listen: Some("127.0.0.1:9093".into()), ..raw() },
                "--admin-listen 127.0.0.1:9093 is one of the shards' ports, 9092 to 9094",
            ),
            (
                RawSettings { advertise: Some("0.0.0.0:1".into()), ..raw() },
                "--advertise must be HOST or HOST:PORT that clients can reach, not \"0.0.0.0:1\"",
            ),
        ] {
            assert_eq!(refused(raw), expected);
        }
    }

    #[test]
    fn other_machines_need_insecure_and_an_address() {
        let open = || RawSettings { listen: Some("0.0.0.0:9092".into()), ..raw() };
        assert!(refused(open()).contains("add --insecure"));
        assert!(refused(RawSettings { admin_listen: Some("0.0.0.0:9644".into()), ..raw() }).starts_with("--admin-listen 0.0.0.0:9644"));
        assert!(refused(RawSettings { insecure: true, ..open() }).contains("--advertise"));
        let settings = RawSettings { insecure: true, advertise: Some("::1".into()), ..open() }.validate(&cpus(2)).unwrap();
        assert_eq!((settings.advertised_host.as_str(), settings.advertised_port), ("::1", None));
    }

    #[test]
    fn times_of_the_consensus_must_fit_each_other() {
        let member = || RawSettings { cluster_listen: Some("127.0.0.1:9700".into()), ..raw() };
        let times =
            |raw: RawSettings| raw.validate(&cpus(4)).unwrap().cluster.map(|c| (c.heartbeat.as_millis(), c.election.as_millis(), c.voters));
        assert_eq!(times(member()), Some((450, 1000, 3)));
        let slow = RawSettings { election_timeout_ms: Some(3000), heartbeat_interval_ms: Some(1500), voters: Some(5), ..member() };
        assert_eq!(times(slow), Some((1500, 3000, 5)));
        for (raw, expected) in [
            (RawSettings { election_timeout_ms: Some(999), ..member() }, "--election-timeout-ms must be 1000 to 60000, not \"999\""),
            (
                RawSettings { heartbeat_interval_ms: Some(501), ..member() },
                "--heartbeat-interval-ms must be 50 to 500, half of --election-timeout-ms, not \"501\"",
            ),
            (
                RawSettings { heartbeat_interval_ms: Some(0), ..member() },
                "--heartbeat-interval-ms must be 50 to 500, half of --election-timeout-ms, not \"0\"",
            ),
            (RawSettings { voters: Some(4), ..member() }, "--voters must be 3 or 5, not \"4\""),
            (
                RawSettings { voters: Some(5), ..raw() },
                "--voters is for a node of a cluster: say with --cluster-listen where others find it",
            ),
        ] {
            assert_eq!(refused(raw), expected);
        }
    }

    #[test]
    fn spinning_shards_must_not_share_a_cpu() {
        let spinning = RawSettings { spin: Some(100), shards: Some(5), ..raw() };
        assert!(refused(spinning.clone()).starts_with("--spin with 5 shards on 4 CPUs"));
        let settings = RawSettings { spin: None, ..spinning }.validate(&cpus(4)).unwrap();
        assert_eq!(settings.shard_cpus, [0, 1, 2, 3, 0]);
    }

    #[test]
    fn flags_win_over_the_file() {
        let file: RawSettings = toml::from_str("shards = 3\nmemory = \"2G\"\nadmin-listen = \"none\"\nbuffered-io = true").unwrap();
        let settings = RawSettings { shards: Some(1), ..raw() }.or(file).validate(&cpus(4)).unwrap();
        assert_eq!((settings.shards(), settings.memory_bytes, settings.admin_listen, settings.buffered_io), (1, 2 << 30, None, true));
        assert!(toml::from_str::<RawSettings>("shard = 3").unwrap_err().to_string().contains("unknown field `shard`"));
        assert_eq!(toml::from_str::<RawSettings>("memory = 1048576").unwrap().memory, Some(Size(1 << 20)));
    }

    #[test]
    fn sizes_are_read_and_written() {
        for (text, bytes) in [("1G", 1 << 30), ("512m", 512 << 20), ("64KiB", 64 << 10), ("7", 7), ("7B", 7), ("2T", 2 << 40)] {
            assert_eq!(text.parse::<Size>().unwrap(), Size(bytes), "{text}");
        }
        for text in ["", "G", "1.5G", "-1", "1X", "99999999999T", "1 G"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
        assert_eq!([Size(1 << 30), Size(1536), Size(0)].map(|s| s.to_string()), ["1G", "1536", "0"]);
    }
}
