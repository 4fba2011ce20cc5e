//! The measure that catch-up is held against: a copy of the same files over the same path that does nothing else.
//!
//! ```text
//!  process where the one node is                     process where the other one is
//!  2 threads read, directly --> 1 thread sends ====> 1 thread receives --> 2 threads write, directly; each file is synced
//!        pieces of 1 MiB, some read ahead    one TCP stream      some waiting to be written
//! ```
//! Disk and network work at the same time on both sides, so that the copy is as fast as the slowest of them. What was written is removed as soon
//! as it is synced.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::network::{Network, Node};

/// The first argument of either process.
pub const WORD: &str = "--bare-copy";
const PIECE: usize = 1 << 20;
/// Direct I/O is in whole ones.
const BLOCK: usize = 4096;
/// Threads that read, and as many that write: one piece is at the disk while the next one is asked for.
const THREADS: usize = 2;
/// Pieces of memory of each such thread.
const PIECES_EACH: usize = 4;

/// What was copied.
#[derive(Clone, Copy, Debug)]
pub struct Copied {
    /// Bytes.
    pub bytes: u64,
    /// From the connection to the last file's sync.
    pub took: Duration,
}

impl Copied {
    /// MiB per second.
    pub fn mib_s(&self) -> u64 {
        mib_s(self.bytes, self.took)
    }
}

/// MiB per second.
pub fn mib_s(bytes: u64, took: Duration) -> u64 {
    (bytes as f64 / took.as_secs_f64() / (1 << 20) as f64) as u64
}

/// Copies files from where one node is to where another one is, into a directory that is there.
pub fn copy(network: &Network, (from, to): (Node, Node), files: &[PathBuf], directory: &Path) -> Result<Copied, String> {
    let program = std::env::current_exe().map_err(|e| e.to_string())?;
    let address = network.spare(to);
    let start = |node, arguments: &mut Command| network.spawn(node, arguments.stdin(Stdio::null()).stdout(Stdio::piped())).map(Killed);
    let mut receiver = start(to, Command::new(&program).args([WORD, "receive", &address]).arg(directory))?;
    expect_line(&mut receiver, "listening")?;
    let mut sender = start(from, Command::new(&program).args([WORD, "send", &address]).args(files))?;
    let line = expect_line(&mut sender, "copied ")?;
    for process in [&mut sender, &mut receiver] {
        let status = process.0.wait().map_err(|e| e.to_string())?;
        if !status.success() {
            return Err(format!("the bare copy ended with {status}"));
        }
    }
    let numbers: Vec<u64> = line.split_whitespace().skip(1).filter_map(|number| number.parse().ok()).collect();
    match numbers[..] {
        [bytes, nanoseconds] => Ok(Copied { bytes, took: Duration::from_nanos(nanoseconds) }),
        _ => Err(format!("the bare copy said {line:?}")),
    }
}

/// A process that does not outlive what waits for it.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn expect_line(process: &mut Killed, start: &str) -> Result<String, String> {
    let output = process.0.stdout.take().ok_or("no output")?;
    let mut line = String::new();
    BufReader::new(output).read_line(&mut line).map_err(|e| e.to_string())?;
    if line.starts_with(start) { Ok(line) } else { Err(format!("the bare copy said {line:?}, expected {start:?}")) }
}

/// What the two processes do.
pub fn run(arguments: &[String]) -> ExitCode {
    let outcome = match arguments {
        [word, address, directory] if word == "receive" => receive(address, Path::new(directory)),
        [word, address, files @ ..] if word == "send" => {
            let sent = send(address, &files.iter().map(PathBuf::from).collect::<Vec<_>>());
            sent.map(|copied| println!("copied {} {}", copied.bytes, copied.took.as_nanos()))
        }
        _ => Err(io::Error::other(format!("no such copy: {arguments:?}"))),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("the bare copy: {error}");
            ExitCode::FAILURE
        }
    }
}

fn send(address: &str, files: &[PathBuf]) -> io::Result<Copied> {
    let open = |path: &PathBuf| -> io::Result<(File, u64)> {
        let file = direct(OpenOptions::new().read(true), path)?;
        let len = file.metadata()?.len();
        Ok((file, len / BLOCK as u64 * BLOCK as u64))
    };
    let opened = files.iter().map(open).collect::<io::Result<Vec<_>>>()?;
    let pieces: Vec<(&File, u64, usize)> =
        opened.iter().flat_map(|(file, len)| pieces_of(*len).map(move |(at, size)| (file, at, size))).collect();
    let begun = Instant::now();
    let mut socket = TcpStream::connect(address)?;
    let mut head = (opened.len() as u64).to_le_bytes().to_vec();
    opened.iter().for_each(|(_, len)| head.extend_from_slice(&len.to_le_bytes()));
    socket.write_all(&head)?;
    thread::scope(|scope| -> io::Result<()> {
        // Pieces go to the threads in turn, and are taken from them in the same order.
        let lanes: Vec<(Receiver<io::Result<Aligned>>, Sender<Aligned>)> = (0..THREADS)
            .map(|lane| {
                let ((filled, full), (release, free)) = (mpsc::channel(), mpsc::channel());
                (0..PIECES_EACH).for_each(|_| drop(release.send(Aligned::new())));
                let mine = pieces.iter().skip(lane).step_by(THREADS);
                scope.spawn(move || {
                    for (file, at, size) in mine {
                        let Ok(mut memory): Result<Aligned, _> = free.recv() else { return };
                        let read = file.read_exact_at(memory.bytes(*size), *at);
                        if filled.send(read.map(|()| memory)).is_err() {
                            return;
                        }
                    }
                });
                (full, release)
            })
            .collect();
        for (number, (_, _, size)) in pieces.iter().enumerate() {
            let (full, release) = &lanes[number % THREADS];
            let mut memory = full.recv().map_err(|_| io::Error::other("a thread that reads has ended"))??;
            socket.write_all(memory.bytes(*size))?;
            // Who has read all pieces takes no more memory.
            let _ = release.send(memory);
        }
        Ok(())
    })?;
    socket.read_exact(&mut [0])?;
    Ok(Copied { bytes: opened.iter().map(|(_, len)| len).sum(), took: begun.elapsed() })
}

fn receive(address: &str, directory: &Path) -> io::Result<()> {
    let listener = TcpListener::bind(address)?;
    println!("listening");
    io::stdout().flush()?;
    let (mut socket, _) = listener.accept()?;
    let files = number(&mut socket)?;
    let lens = (0..files).map(|_| number(&mut socket)).collect::<io::Result<Vec<_>>>()?;
    let (release, free) = mpsc::channel();
    (0..THREADS * PIECES_EACH).for_each(|_| drop(release.send(Aligned::new())));
    let (fill, full) = mpsc::channel::<Piece>();
    let full = Mutex::new(full);
    thread::scope(|scope| -> io::Result<()> {
        let full = &full;
        let writers: Vec<_> =
            (0..THREADS).map(|_| (scope, release.clone())).map(|(scope, release)| scope.spawn(move || write(full, &release))).collect();
        drop(release);
        let mut take = || -> io::Result<()> {
            for (n, len) in lens.iter().enumerate() {
                let target = Arc::new(Target::create(directory.join(format!("bare-{n}")), *len)?);
                for (at, size) in pieces_of(*len) {
                    let mut memory: Aligned = free.recv().map_err(|_| io::Error::other("the threads that write have ended"))?;
                    socket.read_exact(memory.bytes(size))?;
                    fill.send(Piece { target: target.clone(), memory, size, at }).map_err(|_| io::Error::other("nobody writes"))?;
                }
            }
            Ok(())
        };
        let taken = take();
        drop(fill);
        let written = writers.into_iter().map(|writer| writer.join().unwrap_or_else(|_| Err(io::Error::other("a thread has panicked"))));
        written.collect::<io::Result<()>>().and(taken)
    })?;
    socket.write_all(&[1])
}

/// A piece that has come and is not written yet.
struct Piece {
    target: Arc<Target>,
    memory: Aligned,
    size: usize,
    at: u64,
}

/// A file that is written.
struct Target {
    path: PathBuf,
    file: File,
    /// Bytes that are not written yet.
    left: AtomicU64,
}

impl Target {
    fn create(path: PathBuf, len: u64) -> io::Result<Target> {
        let file = direct(OpenOptions::new().write(true).create(true).truncate(true), &path)?;
        if len > 0 {
            rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, len)?;
        }
        Ok(Target { path, file, left: AtomicU64::new(len) })
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Writes what comes. Whoever writes the last piece of a file syncs it, while the others go on.
fn write(full: &Mutex<Receiver<Piece>>, release: &Sender<Aligned>) -> io::Result<()> {
    loop {
        let next = full.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Piece { target, mut memory, size, at }) = next else { return Ok(()) };
        target.file.write_all_at(memory.bytes(size), at)?;
        let _ = release.send(memory);
        if target.left.fetch_sub(size as u64, Ordering::AcqRel) == size as u64 {
            target.file.sync_data()?;
        }
    }
}

fn number(socket: &mut TcpStream) -> io::Result<u64> {
    let mut bytes = [0; 8];
    socket.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

/// Where pieces of so many bytes begin, and their sizes.
fn pieces_of(len: u64) -> impl Iterator<Item = (u64, usize)> {
    (0..len).step_by(PIECE).map(move |at| (at, (len - at).min(PIECE as u64) as usize))
}

fn direct(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    options.custom_flags(libc::O_DIRECT).open(path).map_err(|e| io::Error::other(format!("{}: {e}", path.display())))
}

/// A piece of memory that begins at a block.
struct Aligned {
    memory: Vec<u8>,
    from: usize,
}

impl Aligned {
    fn new() -> Aligned {
        let memory = vec![0; PIECE + BLOCK];
        let from = memory.as_ptr().align_offset(BLOCK);
        Aligned { memory, from }
    }

    fn bytes(&mut self, len: usize) -> &mut [u8] {
        &mut self.memory[self.from..self.from + len]
    }
}
