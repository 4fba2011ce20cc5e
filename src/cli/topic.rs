//! `corelane topic`: create, list, describe, alter, delete, delete-records.

use std::fmt::Write as _;
use std::io::{self, Write};

use serde_json::{Value, json};

use super::broker::BrokerArgs;
use super::exit::{Failure, output_failed};
use crate::client::{Admin, NewTopic, TopicChanges};
use crate::request::{OffsetSpec, TopicDescription, TopicMetadata};

/// What to do with topics.
#[derive(clap::Subcommand)]
pub enum TopicCommand {
    /// Create a topic
    #[command(after_help = "Example: corelane topic create orders --partitions 12 --config retention.ms=86400000")]
    Create(CreateArgs),
    /// List the topics
    #[command(after_help = "Example: corelane topic list")]
    List(ListArgs),
    /// Show a topic's partitions and settings
    #[command(after_help = "Example: corelane topic describe orders")]
    Describe(NameArgs),
    /// Change a topic's settings or add partitions
    #[command(after_help = "Example: corelane topic alter orders --config retention.bytes=1073741824 --config retention.ms=")]
    Alter(AlterArgs),
    /// Delete a topic and its records
    #[command(after_help = "Example: corelane topic delete orders")]
    Delete(NameArgs),
    /// Delete a topic's first records: those before an offset, or all that are there
    #[command(after_help = "Example: corelane topic delete-records orders --partition 3 --before 120000")]
    DeleteRecords(DeleteRecordsArgs),
}

/// Flags of `topic delete-records`.
#[derive(clap::Args)]
pub struct DeleteRecordsArgs {
    /// The topic
    name: String,
    /// Of this partition only; may be repeated [default: all]
    #[arg(long, value_name = "N")]
    partition: Vec<u32>,
    /// The first offset that stays [default: the end, so that all records go]
    #[arg(long, value_name = "OFFSET", requires = "partition", value_parser = clap::value_parser!(i64).range(0..))]
    before: Option<i64>,
    #[command(flatten)]
    broker: BrokerArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Flags of `topic create`.
#[derive(clap::Args)]
pub struct CreateArgs {
    /// Its name: a-z, A-Z, 0-9, '.', '_' and '-'
    name: String,
    /// Number of partitions [default: the broker's]
    #[arg(long, value_name = "N")]
    partitions: Option<u32>,
    /// Replicas of each partition, in nodes [default: the broker's]
    #[arg(long, value_name = "N")]
    replication_factor: Option<u16>,
    /// A setting by Kafka's name, as retention.ms=86400000; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
    config: Vec<(String, String)>,
    #[command(flatten)]
    broker: BrokerArgs,
    /// Print the topic as JSON
    #[arg(long)]
    json: bool,
}

/// Flags of `topic list`.
#[derive(clap::Args)]
pub struct ListArgs {
    #[command(flatten)]
    broker: BrokerArgs,
    /// Print a JSON array
    #[arg(long)]
    json: bool,
}

/// Flags of `topic describe` and `topic delete`.
#[derive(clap::Args)]
pub struct NameArgs {
    /// The topic
    name: String,
    #[command(flatten)]
    broker: BrokerArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Flags of `topic alter`.
#[derive(clap::Args)]
pub struct AlterArgs {
    /// The topic
    name: String,
    /// The new number of partitions, at least the present one
    #[arg(long, value_name = "N", required_unless_present_any = ["config", "replicas"])]
    partitions: Option<u32>,
    /// Nodes of a partition's replicas, the one first that is to lead, as 3=1,2,4; may be repeated. Waits until they are there; interrupted, it goes on all the same
    #[arg(long, value_name = "P=N1,N2,N3", value_parser = super::cluster::reassign::replicas)]
    replicas: Vec<(u32, Vec<u32>)>,
    /// Do not wait for replicas
    #[arg(long, requires = "replicas")]
    no_wait: bool,
    /// A setting to set, or with nothing behind '=' to give back to its default; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
    config: Vec<(String, String)>,
    #[command(flatten)]
    broker: BrokerArgs,
    /// Print the topic as JSON
    #[arg(long)]
    json: bool,
}

fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.into(), value.into())),
        _ => Err("KEY=VALUE is expected".into()),
    }
}

impl TopicCommand {
    /// Whether JSON is wanted.
    pub fn json(&self) -> bool {
        match self {
            TopicCommand::Create(args) => args.json,
            TopicCommand::List(args) => args.json,
            TopicCommand::Describe(args) | TopicCommand::Delete(args) => args.json,
            TopicCommand::Alter(args) => args.json,
            TopicCommand::DeleteRecords(args) => args.json,
        }
    }

    /// Does it, and prints what came of it.
    pub fn run(self) -> Result<(), Failure> {
        let text = super::block_on(async {
            match self {
                TopicCommand::Create(args) => create(args).await,
                TopicCommand::List(args) => list(args).await,
                TopicCommand::Describe(args) => describe(args).await,
                TopicCommand::Alter(args) => alter(args).await,
                TopicCommand::Delete(args) => delete(args).await,
                TopicCommand::DeleteRecords(args) => delete_records(args).await,
            }
        })?;
        io::stdout().write_all(text.as_bytes()).or_else(|e| output_failed(&e))
    }
}

async fn create(args: CreateArgs) -> Result<String, Failure> {
    let admin = args.broker.connect().await?.admin();
    let mut topic = NewTopic::new(&args.name);
    if let Some(partitions) = args.partitions {
        topic = topic.partitions(partitions);
    }
    if let Some(replicas) = args.replication_factor {
        topic = topic.replication_factor(replicas);
    }
    for (key, value) in args.config {
        topic = topic.config(key, value);
    }
    let made = admin.create_topic(topic).await?;
    warn_of_collision(&admin, &made.name).await;
    Ok(if args.json { line(&description_json(&made)) } else { format!("created {}\n", summary(&made)) })
}

/// Kafka's tools warn of it as well: metrics systems that have no dots can't tell such names apart.
async fn warn_of_collision(admin: &Admin, name: &str) {
    let plain = |name: &str| name.replace('.', "_");
    let names = admin.list_topics().await.unwrap_or_default();
    if let Some(other) = names.iter().find(|other| *other != name && plain(other) == plain(name)) {
        eprintln!("corelane: {name} and {other} differ only in '.' and '_': metrics may mix them up");
    }
}

async fn list(args: ListArgs) -> Result<String, Failure> {
    let mut topics = args.broker.connect().await?.metadata().await?.topics;
    topics.sort_by(|a, b| a.name.cmp(&b.name));
    if !args.json {
        return Ok(topics.iter().fold(String::new(), |text, topic| text + &topic.name + "\n"));
    }
    let entry = |topic: &TopicMetadata| match &topic.found {
        Ok(found) => json!({ "name": topic.name, "id": found.id.to_string(), "partitions": found.partitions.len() }),
        Err(refusal) => json!({ "name": topic.name, "error": refusal.to_string() }),
    };
    Ok(line(&topics.iter().map(entry).collect()))
}

async fn describe(args: NameArgs) -> Result<String, Failure> {
    let client = args.broker.connect().await?;
    let admin = client.admin();
    let topic = admin.describe_topic(&args.name).await?;
    let metadata = client.metadata().await?;
    let found = metadata.topics.into_iter().find(|t| t.name == args.name);
    let places = found.and_then(|t| t.found.ok()).map(|found| found.partitions).unwrap_or_default();
    let mut partitions = Vec::new();
    for (partition, place) in (0..).zip(&places) {
        let earliest = admin.offset(&args.name, partition, OffsetSpec::Earliest).await?.0;
        let latest = admin.offset(&args.name, partition, OffsetSpec::Latest).await?.0;
        partitions.push(json!({
            "partition": partition, "leader": place.leader, "leader_epoch": place.leader_epoch, "earliest": earliest, "latest": latest,
        }));
    }
    if args.json {
        let mut value = description_json(&topic);
        value["partition_states"] = partitions.into();
        return Ok(line(&value));
    }
    let mut text = format!("{}\nid {}\n\nsettings (* set on the topic)\n", summary(&topic), topic.id);
    for entry in &topic.config {
        let _ = writeln!(text, "{} {:<24} {}", if entry.is_set { '*' } else { ' ' }, entry.name, entry.value);
    }
    const COLUMNS: [&str; 5] = ["partition", "leader", "leader_epoch", "earliest", "latest"];
    text.push('\n');
    text += &COLUMNS.map(|name| format!("{name:>14}")).concat();
    for p in &partitions {
        text.push('\n');
        text += &COLUMNS.map(|name| format!("{:>14}", p[name].to_string())).concat();
    }
    text.push('\n');
    Ok(text)
}

async fn alter(args: AlterArgs) -> Result<String, Failure> {
    let admin = args.broker.connect().await?.admin();
    let mut changes = TopicChanges::new(&args.name);
    if let Some(partitions) = args.partitions {
        changes = changes.partitions(partitions);
    }
    for (key, value) in args.config {
        changes = if value.is_empty() { changes.reset(key) } else { changes.set(key, value) };
    }
    let altered = match args.partitions.is_none() && changes == TopicChanges::new(&args.name) {
        true => admin.describe_topic(&args.name).await?,
        false => admin.alter_topic(changes).await?,
    };
    if !args.replicas.is_empty() {
        super::cluster::reassign::begin(&admin, &args.name, &args.replicas).await?;
        if !args.no_wait {
            super::cluster::reassign::finish(&admin, &args.name, &args.replicas).await?;
        }
    }
    Ok(if args.json { line(&description_json(&altered)) } else { format!("altered {}\n", summary(&altered)) })
}

async fn delete(args: NameArgs) -> Result<String, Failure> {
    args.broker.connect().await?.admin().delete_topic(&args.name).await?;
    Ok(if args.json { line(&json!({ "deleted": args.name })) } else { format!("deleted {}\n", args.name) })
}

/// One partition after the other; what was deleted before one is refused stays deleted.
async fn delete_records(args: DeleteRecordsArgs) -> Result<String, Failure> {
    let admin = args.broker.connect().await?.admin();
    let partitions = match args.partition.is_empty() {
        true => (0..admin.describe_topic(&args.name).await?.partitions).collect(),
        false => args.partition,
    };
    let mut starts = Vec::new();
    for partition in partitions {
        starts.push((partition, admin.delete_records(&args.name, partition, args.before).await?));
    }
    Ok(match args.json {
        true => {
            let start = |(partition, earliest): &(u32, i64)| json!({ "partition": partition, "earliest": earliest });
            line(&json!({ "topic": args.name, "partitions": starts.iter().map(start).collect::<Vec<_>>() }))
        }
        false => starts.iter().map(|(partition, earliest)| format!("{} {partition}: records from {earliest} on\n", args.name)).collect(),
    })
}

fn summary(topic: &TopicDescription) -> String {
    format!("{}: {} partition(s), replication factor {}, {}", topic.name, topic.partitions, topic.replication_factor, topic.durability)
}

fn description_json(topic: &TopicDescription) -> Value {
    let setting = |e: &crate::request::ConfigEntry| (e.name.clone(), json!({ "value": e.value, "set": e.is_set }));
    json!({
        "name": topic.name,
        "id": topic.id.to_string(),
        "partitions": topic.partitions,
        "replication_factor": topic.replication_factor,
        "durability": topic.durability.name(),
        "config": topic.config.iter().map(setting).collect::<serde_json::Map<_, _>>(),
    })
}

fn line(value: &Value) -> String {
    format!("{value}\n")
}
