//! The lines that are streamed: real files, keyed by the program that wrote a line or else by the file.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::cli::exit::Failure;

/// Where a machine keeps its logs.
const LOGS: &str = "/var/log";
/// Most bytes that are read and held; they are repeated anyway.
const MAX_BYTES: usize = 64 << 20;
/// Longer lines are left out: hardly text for people.
const MAX_LINE: usize = 64 << 10;
/// Most files that are looked at, and how deep below a given directory.
const MAX_FILES: usize = 2000;
const MAX_DEPTH: usize = 8;
/// The beginning of a file that tells text from other data.
const PROBE_BYTES: usize = 4096;
/// Directories of built things.
const SKIPPED: [&str; 2] = ["target", "node_modules"];

/// Lines of files, in memory.
#[derive(Debug, Default)]
pub struct Input {
    /// The places that the lines are from.
    pub places: Vec<PathBuf>,
    /// Files that have at least one line.
    pub files: usize,
    text: Vec<u8>,
    keys: Vec<Vec<u8>>,
    lines: Vec<Line>,
}

#[derive(Clone, Copy, Debug)]
struct Line {
    start: usize,
    len: usize,
    key: usize,
}

impl Input {
    /// The given files and directories, or else the machine's logs, or else the text files here.
    ///
    /// # Errors
    /// A given place can't be read, or there is no line of text.
    pub fn read(given: &[PathBuf]) -> Result<Input, Failure> {
        if !given.is_empty() {
            let input = Input::of(given).map_err(|(place, e)| Failure::usage(format!("--input {}: {e}", place.display())))?;
            let places = || given.iter().map(|place| place.display().to_string()).collect::<Vec<_>>().join(", ");
            return if input.is_empty() { Err(Failure::usage(format!("--input: no line of text in {}", places()))) } else { Ok(input) };
        }
        let candidates = [LOGS, "."].into_iter().filter_map(|place| Input::of(&[place.into()]).ok());
        let found = candidates.into_iter().find(|input| !input.is_empty());
        found.ok_or_else(|| Failure::usage(format!("no readable text in {LOGS} or in this directory; give files with --input PATH")))
    }

    /// A place that is named must be readable; what is below it is taken as far as it is.
    fn of(places: &[PathBuf]) -> Result<Input, (PathBuf, io::Error)> {
        let mut input = Input { places: places.to_vec(), ..Input::default() };
        let mut keys = HashMap::new();
        for place in places {
            let named = |e| (place.clone(), e);
            if fs::metadata(place).map_err(named)?.is_dir() {
                let mut files = Vec::new();
                list(place, MAX_DEPTH, &mut files).map_err(named)?;
                files.iter().for_each(|file| drop(input.add(file, &mut keys)));
            } else {
                input.add(place, &mut keys).map_err(named)?;
            }
        }
        Ok(input)
    }

    fn add(&mut self, path: &Path, keys: &mut HashMap<Vec<u8>, usize>) -> io::Result<()> {
        let mut text = Vec::new();
        let room = MAX_BYTES.saturating_sub(self.text.len()) as u64;
        let mut file = File::open(path)?.take(room);
        file.by_ref().take(PROBE_BYTES as u64).read_to_end(&mut text)?;
        if !is_text(&text) {
            return Ok(());
        }
        file.read_to_end(&mut text)?;
        if text.len() as u64 == room {
            // The room ended somewhere in a line.
            text.truncate(text.iter().rposition(|byte| *byte == b'\n').unwrap_or(0));
        }
        let name = path.file_name().unwrap_or_default().as_encoded_bytes();
        let before = self.lines.len();
        for line in text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty() && line.len() <= MAX_LINE) {
            let key = program_of(line).unwrap_or(name);
            let key = keys.get(key).copied().unwrap_or_else(|| {
                self.keys.push(key.to_vec());
                keys.insert(key.to_vec(), self.keys.len() - 1);
                self.keys.len() - 1
            });
            self.lines.push(Line { start: self.text.len(), len: line.len(), key });
            self.text.extend_from_slice(line);
        }
        self.files += usize::from(self.lines.len() > before);
        Ok(())
    }

    /// How many lines.
    pub fn len(&self) -> usize {
        self.lines.len()
    }

    /// Whether there are no lines.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// How many different keys.
    pub fn keys(&self) -> usize {
        self.keys.len()
    }

    /// Key and value of line `n`; after the last line the first follows again.
    ///
    /// # Panics
    /// There is no line.
    pub fn record(&self, n: u64) -> (&[u8], &[u8]) {
        let line = self.lines[(n % self.lines.len() as u64) as usize];
        (&self.keys[line.key], &self.text[line.start..line.start + line.len])
    }
}

/// Plain files below a directory, in order; no links, nothing hidden.
fn list(directory: &Path, depth: usize, files: &mut Vec<PathBuf>) -> io::Result<()> {
    let mut entries: Vec<_> = fs::read_dir(directory)?.filter_map(Result::ok).collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let name = entry.file_name();
        let is_skipped = name.as_encoded_bytes().starts_with(b".") || SKIPPED.iter().any(|skipped| name == *skipped);
        let Ok(kind) = entry.file_type() else { continue };
        if is_skipped || files.len() >= MAX_FILES {
            continue;
        }
        if kind.is_file() {
            files.push(entry.path());
        } else if kind.is_dir() && depth > 0 {
            // A directory that is not for us is no reason not to use the others.
            let _ = list(&entry.path(), depth - 1, files);
        }
    }
    Ok(())
}

/// Whether a file that begins like this is text: UTF-8, which may be cut off at the end, without zeros.
fn is_text(beginning: &[u8]) -> bool {
    let is_utf8 = match std::str::from_utf8(beginning) {
        Ok(_) => true,
        Err(error) => beginning.len() == PROBE_BYTES && error.error_len().is_none(),
    };
    is_utf8 && !beginning.contains(&0)
}

/// The program of a syslog line: `Nov  2 10:00:00 host program[7]: words` or `2026-11-02T10:00:00+00:00 host program: words`.
fn program_of(line: &[u8]) -> Option<&[u8]> {
    let mut words = line.split(|byte| *byte == b' ').filter(|word| !word.is_empty());
    let first = words.next()?;
    if is_month(first) {
        let (day, time) = (words.next()?, words.next()?);
        if !day.iter().all(u8::is_ascii_digit) || time.get(2) != Some(&b':') {
            return None;
        }
    } else if first.get(4) != Some(&b'-') || first.get(10) != Some(&b'T') {
        return None;
    }
    let _host = words.next()?;
    let tag = words.next()?.strip_suffix(b":")?;
    let name = tag.split(|byte| *byte == b'[').next()?;
    (!name.is_empty()).then_some(name)
}

fn is_month(word: &[u8]) -> bool {
    const MONTHS: [&[u8]; 12] = [b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec"];
    MONTHS.contains(&word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn syslog_lines_name_their_program() {
        for (line, program) in [
            ("Nov  2 10:00:00 host sshd[123]: Accepted", Some("sshd")),
            ("Nov 12 10:00:00 host kernel: [1.0] usb", Some("kernel")),
            ("2026-11-02T10:00:00.123456+00:00 host systemd[1]: Started", Some("systemd")),
            ("2025-06-24 14:36:25 startup archives unpack", None),
            ("Nov was cold: very", None),
            ("Nov 2 10:00:00 host [7]: words", None),
            ("Start-Date: 2025-06-24", None),
            ("", None),
        ] {
            assert_eq!(program_of(line.as_bytes()), program.map(str::as_bytes), "{line}");
        }
    }

    #[test]
    fn text_files_below_a_directory_are_taken_and_others_are_not() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| {
            let path = directory.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        };
        write("a.log", b"one\n\ntwo\nNov  2 10:00:00 host sshd[1]: three");
        write("deep/b.log", "vier \u{e4}\n".as_bytes());
        write("binary", b"a\0b\n");
        write("latin", b"\xe4\n");
        write(".hidden", b"no\n");
        write("target/built", b"no\n");
        let input = Input::read(&[directory.path().into()]).unwrap();
        let records: Vec<_> = (0..5).map(|n| input.record(n)).map(|(k, v)| (k.to_vec(), v.to_vec())).collect();
        let expected: [(&[u8], &[u8]); 5] = [
            (b"a.log", b"one"),
            (b"a.log", b"two"),
            (b"sshd", b"Nov  2 10:00:00 host sshd[1]: three"),
            (b"b.log", "vier \u{e4}".as_bytes()),
            (b"a.log", b"one"),
        ];
        assert_eq!(records, expected.map(|(k, v)| (k.to_vec(), v.to_vec())));
        assert_eq!((input.len(), input.files, input.keys()), (4, 2, 3));
    }

    #[test]
    fn a_place_without_text_is_wrong_usage() {
        let directory = tempfile::tempdir().unwrap();
        let empty = Input::read(&[directory.path().into()]).unwrap_err();
        assert!(empty.message.contains("no line of text"), "{empty}");
        let missing = Input::read(&[directory.path().join("missing")]).unwrap_err();
        assert!(missing.message.contains("missing: No such file"), "{missing}");
    }
}
