//! The README's three nodes: its block, word for word, in an empty directory.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};

use super::network::Network;
use super::wait_until;
use crate::broker::last_words;

/// What the README promises.
const PATIENCE: Duration = Duration::from_secs(60);
/// In the block, and in no other one.
const MARK: &str = "--cluster-listen";

/// Runs the block and waits until the cluster is healthy.
pub fn block_forms_a_cluster() -> Result<(), String> {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let readme = std::fs::read_to_string(&readme).map_err(|e| format!("{}: {e}", readme.display()))?;
    let block = block_of(&readme)?;
    let scratch = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).map_err(|e| e.to_string())?;
    // The block's ports may be somebody's on this host: a namespace of its own has all of them free.
    let network = match Network::namespaces(1) {
        Ok(network) => Some(network),
        Err(reason) => {
            eprintln!("on the host's own ports, as there can be no namespace: {reason}");
            None
        }
    };
    let spawn = |arguments: &[&str], log: &str| -> Result<Child, String> {
        let log = File::create(scratch.path().join(log)).map_err(|e| e.to_string())?;
        let mut command = Command::new(arguments[0]);
        command.args(&arguments[1..]).current_dir(scratch.path()).env("PATH", path()).stdin(Stdio::null());
        command.stdout(log.try_clone().map_err(|e| e.to_string())?).stderr(log).process_group(0);
        match &network {
            Some(network) => network.spawn(1, &mut command),
            None => command.spawn().map_err(|e| e.to_string()),
        }
    };
    // It ends when everything that it left in the background has ended: in a group of its own, which is killed.
    let shell = Group(spawn(&["bash", "-e", "-c", &format!("{block}\nwait")], "block.log")?);
    let healthy = || {
        let mut asked = spawn(&["corelane", "cluster", "status", "--json"], "status.log")?;
        asked.wait().map_err(|e| e.to_string())?;
        let said = std::fs::read_to_string(scratch.path().join("status.log")).map_err(|e| e.to_string())?;
        let status: serde_json::Value = serde_json::from_str(said.trim()).map_err(|e| format!("{e}: {said}"))?;
        let nodes = status["nodes"].as_array().map_or(0, Vec::len);
        let is_whole = status["health"] == "healthy" && nodes == 3;
        if is_whole { Ok(()) } else { Err(format!("{nodes} nodes, {}: {}", status["health"], status["problems"])) }
    };
    let outcome = wait_until("the README's three nodes are healthy", PATIENCE, healthy);
    drop(shell);
    outcome.map(drop).map_err(|what| format!("{what}\nthe block says:\n{}", last_words(&scratch.path().join("block.log"))))
}

/// The only block of shell commands that starts nodes of a cluster.
fn block_of(readme: &str) -> Result<&str, String> {
    let blocks = readme.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next());
    let mut marked = blocks.filter(|block| block.contains(MARK));
    match (marked.next(), marked.next()) {
        (Some(block), None) => Ok(block),
        (None, _) => Err(format!("no block of the README has {MARK}")),
        (Some(_), Some(_)) => Err(format!("more than one block of the README has {MARK}")),
    }
}

/// The built program is found first.
fn path() -> String {
    let directory = Path::new(env!("CARGO_BIN_EXE_corelane")).parent().expect("a program's directory");
    format!("{}:{}", directory.display(), std::env::var("PATH").unwrap_or_default())
}

/// A process group, killed when dropped.
struct Group(Child);

impl Drop for Group {
    fn drop(&mut self) {
        let _ = kill_process_group(Pid::from_child(&self.0), Signal::KILL);
        let _ = self.0.wait();
    }
}
