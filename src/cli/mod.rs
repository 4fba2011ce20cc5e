//! The `corelane` command: reads the command line, does one thing, ends with one exit code.
//!
//! Each command is a file: its flags, and what it does. [`exit`] has the codes, [`mod@format`] the output format of `consume`. What a
//! command prints for people goes to standard output, what it has to say about itself to standard error; with `--json`, standard
//! output is JSON and nothing else.

pub mod bench;
pub mod broker;
pub mod child;
pub mod cluster;
pub mod consume;
pub mod demo;
pub mod exit;
pub mod format;
pub mod group;
pub mod inspect;
mod iso8601;
pub mod logging;
pub mod produce;
mod repair;
pub mod serve;
pub mod stat;
pub mod topic;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use exit::{Exit, Failure};

/// Words behind every command's help.
const EXIT_CODES: &str = "Exit codes: 0 done, 1 the check or delivery failed, 2 wrong usage or setting, 3 broker not reachable, \
    4 refused by the broker, 5 this host can't run it, 6 the cluster works but something is missing. Logs go to standard error, filtered by CORELANE_LOG (as info or corelane=debug).";

#[derive(Parser)]
#[command(name = "corelane", version, about = "A Kafka-class message broker that acknowledges only what is on disk", after_help = EXIT_CODES)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure a broker, or what this machine can do without one
    #[command(subcommand)]
    Bench(bench::BenchCommand),
    /// Run a broker
    Serve(serve::ServeArgs),
    /// Look at the files of a store, changing nothing
    Inspect(inspect::InspectArgs),
    /// Create, list, describe, alter or delete topics, or their records
    #[command(subcommand)]
    Topic(topic::TopicCommand),
    /// Show the state of the cluster, and change its nodes and where replicas are
    #[command(subcommand)]
    Cluster(cluster::ClusterCommand),
    /// List, describe, reset and delete consumer groups
    #[command(subcommand)]
    Group(group::GroupCommand),
    /// Send one record a line, from a file or standard input
    Produce(produce::ProduceArgs),
    /// Print the records of a topic
    Consume(consume::ConsumeArgs),
    /// Stream real files through a broker, kill it on the way, and compare what it acknowledged with what is there
    Demo(demo::DemoArgs),
    /// Print what every shard of a running broker does
    Stat(stat::StatArgs),
}

impl Command {
    /// Whether errors are to be JSON too.
    fn json(&self) -> bool {
        match self {
            Command::Bench(command) => command.json(),
            Command::Serve(args) => args.json,
            Command::Inspect(args) => args.json(),
            Command::Topic(command) => command.json(),
            Command::Cluster(command) => command.json(),
            Command::Group(command) => command.json(),
            Command::Produce(args) => args.json,
            Command::Consume(args) => args.json,
            Command::Demo(args) => args.json,
            Command::Stat(args) => args.json,
        }
    }

    fn run(self) -> Result<(), Failure> {
        match self {
            Command::Bench(command) => logged("warn", || command.run()),
            // What the consensus library says is for its authors; what matters is said by us.
            Command::Serve(args) => logged("info,openraft=off", || serve::run(args)),
            Command::Inspect(args) => logged("warn", || inspect::run(args)),
            Command::Topic(command) => logged("warn", || command.run()),
            Command::Cluster(command) => logged("warn", || command.run()),
            Command::Group(command) => logged("warn", || command.run()),
            Command::Produce(args) => logged("warn", || produce::run(args)),
            Command::Consume(args) => logged("warn", || consume::run(args)),
            Command::Demo(args) => logged("warn", || demo::run(&args)),
            Command::Stat(args) => logged("warn", || stat::run(args)),
        }
    }
}

fn logged(default: &str, run: impl FnOnce() -> Result<(), Failure>) -> Result<(), Failure> {
    logging::start(default);
    run()
}

/// The whole process.
pub fn main() -> ExitCode {
    let command = match CommandLine::try_parse() {
        Ok(line) => line.command,
        Err(error) => {
            // Help and version are answers, not errors.
            let exit = if error.use_stderr() { Exit::Usage } else { Exit::Done };
            let _ = error.print();
            return exit.into();
        }
    };
    let json = command.json();
    match command.run() {
        Ok(()) => Exit::Done.into(),
        Err(failure) if failure.message.is_empty() => failure.exit.into(),
        Err(failure) => {
            eprintln!("corelane: {failure}");
            if json {
                let line = serde_json::json!({ "error": failure.message, "exit": failure.exit as u8 });
                let _ = writeln!(io::stdout(), "{line}");
            }
            failure.exit.into()
        }
    }
}

/// A runtime for a command that talks to a broker.
fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| Failure::new(Exit::Host, format!("no runtime can be started: {e}")))?;
    let result = runtime.block_on(work);
    // A thread may still be reading standard input; after a failure nobody waits for its end.
    runtime.shutdown_background();
    result
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        CommandLine::command().debug_assert();
    }

    /// Every command that does something has an example and takes `--json`.
    #[test]
    fn every_command_has_an_example_and_json() {
        fn check(command: &clap::Command) {
            if command.has_subcommands() {
                command.get_subcommands().for_each(check);
                return;
            }
            let name = command.get_name();
            let help = command.get_after_help().map(|h| h.to_string()).unwrap_or_default();
            assert!(help.starts_with("Example: "), "{name} has no example");
            assert!(command.get_arguments().any(|a| a.get_long() == Some("json")), "{name} has no --json");
        }
        CommandLine::command().get_subcommands().for_each(check);
    }
}
