//! `corelane group`: list, describe, reset-offsets, delete.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::broker::BrokerArgs;
use super::exit::{Exit, Failure, output_failed};
use super::iso8601::{parse_duration, parse_time};
use crate::client::{PlannedReset, ResetTo, assigned};
use crate::request::group::{DescribedGroup, State};

/// What to do with consumer groups.
#[derive(clap::Subcommand)]
pub enum GroupCommand {
    /// List the groups
    #[command(after_help = "Example: corelane group list")]
    List(ListArgs),
    /// Show a group's members, its positions and how far it is behind
    #[command(after_help = "Example: corelane group describe billing")]
    Describe(NameArgs),
    /// Set a group without members to other offsets; shows what would be done unless --execute is given
    #[command(after_help = "Example: corelane group reset-offsets billing --topic orders --to-earliest --execute")]
    ResetOffsets(ResetArgs),
    /// Delete a group without members, with its positions
    #[command(after_help = "Example: corelane group delete billing")]
    Delete(NameArgs),
}

/// Flags of `group list`.
#[derive(clap::Args)]
pub struct ListArgs {
    #[command(flatten)]
    broker: BrokerArgs,
    /// Print a JSON array
    #[arg(long)]
    json: bool,
}

/// Flags of `group describe` and `group delete`.
#[derive(clap::Args)]
pub struct NameArgs {
    /// The group
    group: String,
    #[command(flatten)]
    broker: BrokerArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Flags of `group reset-offsets`.
#[derive(clap::Args)]
#[command(group = clap::ArgGroup::new("target").required(true))]
pub struct ResetArgs {
    /// The group
    group: String,
    /// In this topic; may be repeated [default: those that the group has positions in]
    #[arg(long, value_name = "TOPIC")]
    topic: Vec<String>,
    /// To the first record that is still there
    #[arg(long, group = "target")]
    to_earliest: bool,
    /// To the end
    #[arg(long, group = "target")]
    to_latest: bool,
    /// To this offset, or the nearest that a partition has
    #[arg(long, group = "target", value_name = "OFFSET", value_parser = clap::value_parser!(i64).range(0..))]
    to_offset: Option<i64>,
    /// So many offsets on, or back if negative
    #[arg(long, group = "target", value_name = "N", allow_negative_numbers = true)]
    shift_by: Option<i64>,
    /// To the first record at or after this time: as 2026-11-28T15:30:00.250+01:00 (UTC where it names no zone), or in ms since 1970-01-01 UTC
    #[arg(long, visible_alias = "to-datetime", group = "target", value_name = "TIME", value_parser = parse_time, allow_negative_numbers = true)]
    to_timestamp: Option<i64>,
    /// To the first record of the last so many seconds, or of a duration as PT1H30M
    #[arg(long, group = "target", value_name = "DURATION", value_parser = parse_duration)]
    by_duration: Option<i64>,
    /// Do it
    #[arg(long)]
    execute: bool,
    #[command(flatten)]
    broker: BrokerArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl ResetArgs {
    fn target(&self) -> Result<ResetTo, Failure> {
        let chosen = [
            self.to_earliest.then_some(ResetTo::Earliest),
            self.to_latest.then_some(ResetTo::Latest),
            self.to_offset.map(ResetTo::Offset),
            self.shift_by.map(ResetTo::Shift),
            self.to_timestamp.map(ResetTo::Time),
            self.by_duration.map(|ms| ResetTo::Time(before_now(ms))),
        ];
        chosen.into_iter().flatten().next().ok_or_else(|| Failure::new(Exit::Usage, "where to is not said".to_owned()))
    }
}

fn before_now(ms: i64) -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    (now.as_millis() as i64).saturating_sub(ms).max(0)
}

impl GroupCommand {
    /// Whether JSON is wanted.
    pub fn json(&self) -> bool {
        match self {
            GroupCommand::List(args) => args.json,
            GroupCommand::Describe(args) | GroupCommand::Delete(args) => args.json,
            GroupCommand::ResetOffsets(args) => args.json,
        }
    }

    /// Does it, and prints what came of it.
    pub fn run(self) -> Result<(), Failure> {
        let text = super::block_on(async {
            match self {
                GroupCommand::List(args) => list(args).await,
                GroupCommand::Describe(args) => describe(args).await,
                GroupCommand::ResetOffsets(args) => reset(args).await,
                GroupCommand::Delete(args) => delete(args).await,
            }
        })?;
        io::stdout().write_all(text.as_bytes()).or_else(|e| output_failed(&e))
    }
}

fn line(value: &Value) -> String {
    format!("{value}\n")
}

async fn list(args: ListArgs) -> Result<String, Failure> {
    let groups = args.broker.connect().await?.admin().list_groups().await?;
    if args.json {
        let entries = groups.iter().map(|g| json!({ "group": &*g.group, "state": g.state.name(), "protocol_type": &*g.protocol_type }));
        return Ok(line(&entries.collect()));
    }
    Ok(groups.iter().fold(String::new(), |text, group| text + &group.group + "\n"))
}

fn members_json(group: &DescribedGroup) -> Value {
    let member = |member: &crate::request::group::DescribedMember| {
        let partitions = assigned(&member.assignment).map(|topics| {
            topics.into_iter().map(|(topic, numbers)| (topic.to_string(), json!(numbers))).collect::<serde_json::Map<_, _>>()
        });
        json!({
            "member": &*member.member_id, "instance": member.instance_id.as_deref(), "client": &*member.client_id,
            "host": &*member.client_host, "partitions": partitions,
        })
    };
    group.members.iter().map(member).collect()
}

async fn describe(args: NameArgs) -> Result<String, Failure> {
    let admin = args.broker.connect().await?.admin();
    let group = admin.describe_group(&args.group).await?;
    if group.state == State::Dead {
        return Err(Failure::new(Exit::Refused, format!("there is no group {:?}", args.group)));
    }
    let positions = admin.group_positions(&args.group).await?;
    if args.json {
        let positions =
            positions.iter().map(|p| json!({ "topic": p.topic, "partition": p.partition, "offset": p.offset, "end": p.end, "lag": p.lag }));
        return Ok(line(&json!({
            "group": &*group.group, "state": group.state.name(), "protocol": &*group.protocol,
            "members": members_json(&group), "positions": positions.collect::<Vec<_>>(),
        })));
    }
    let mut text = format!("{}: {}, {} member(s)", group.group, group.state.name(), group.members.len());
    if !group.protocol.is_empty() {
        let _ = write!(text, ", {}", group.protocol);
    }
    text.push('\n');
    for member in &group.members {
        let _ = write!(text, "\n{} {} {}", member.member_id, member.client_id, member.client_host);
        for (topic, numbers) in assigned(&member.assignment).unwrap_or_default() {
            let _ = write!(text, " {topic}{numbers:?}");
        }
    }
    if !group.members.is_empty() {
        text.push('\n');
    }
    const COLUMNS: [&str; 4] = ["partition", "offset", "end", "lag"];
    let _ = write!(text, "\n{:<32}", "topic");
    text += &COLUMNS.map(|name| format!("{name:>14}")).concat();
    text.push('\n');
    for p in &positions {
        let offset = p.offset.map_or_else(|| "-".to_owned(), |offset| offset.to_string());
        let _ = writeln!(text, "{:<32}{:>14}{offset:>14}{:>14}{:>14}", p.topic, p.partition, p.end, p.lag);
    }
    Ok(text)
}

async fn reset(args: ResetArgs) -> Result<String, Failure> {
    let target = args.target()?;
    let admin = args.broker.connect().await?.admin();
    let plan = admin.plan_reset(&args.group, &args.topic, target).await?;
    if args.execute && !plan.is_empty() {
        admin.reset_group(&args.group, &plan).await?;
    }
    if args.json {
        let partitions = plan
            .iter()
            .map(|reset| json!({ "topic": reset.topic, "partition": reset.partition, "before": reset.before, "after": reset.after }));
        return Ok(line(&json!({ "group": args.group, "executed": args.execute, "partitions": partitions.collect::<Vec<_>>() })));
    }
    let mut text = plan.iter().fold(String::new(), |text, reset| text + &reset_line(reset));
    if !args.execute {
        text += "nothing was changed: --execute does it\n";
    }
    Ok(text)
}

fn reset_line(reset: &PlannedReset) -> String {
    let before = reset.before.map_or_else(|| "-".to_owned(), |offset| offset.to_string());
    format!("{:<32}{:>14}{before:>14} -> {}\n", reset.topic, reset.partition, reset.after)
}

async fn delete(args: NameArgs) -> Result<String, Failure> {
    args.broker.connect().await?.admin().delete_group(&args.group).await?;
    Ok(if args.json { line(&json!({ "deleted": args.group })) } else { format!("deleted {}\n", args.group) })
}
