//! Loopback TCP between two threads on two cores: plain blocking sockets, nothing of the broker.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use super::{Latencies, Throughput};

/// Bytes of a ping and of a pong: a small request and its answer.
pub const PING_BYTES: usize = 128;
/// Bytes of one write and of one read of the one-way stream.
pub const ONE_WAY_BYTES: usize = 64 * 1024;

/// Round trips of [`PING_BYTES`] there and back, one at a time.
pub fn ping_pong(duration: Duration) -> io::Result<Latencies> {
    let (mut near, mut far) = connected_pair()?;
    thread::scope(|scope| {
        let echo = scope.spawn(move || {
            pin(1);
            let mut message = [0; PING_BYTES];
            while read_message(&mut far, &mut message)? {
                far.write_all(&message)?;
            }
            io::Result::Ok(())
        });
        let asked = scope.spawn(move || {
            pin(0);
            ask(&mut near, duration)
        });
        let latencies = joined(asked)?;
        joined(echo)?;
        Ok(latencies)
    })
}

/// Closes the stream when it returns, which ends the echo.
fn ask(near: &mut TcpStream, duration: Duration) -> io::Result<Latencies> {
    let mut latencies = Latencies::new();
    let mut message = [1; PING_BYTES];
    let started = Instant::now();
    let warm_up = duration / 10;
    loop {
        let sent = Instant::now();
        if sent - started > duration + warm_up {
            near.shutdown(std::net::Shutdown::Write)?;
            return Ok(latencies);
        }
        near.write_all(&message)?;
        near.read_exact(&mut message)?;
        if sent - started >= warm_up {
            latencies.record(sent.elapsed());
        }
    }
}

/// One direction, as fast as it goes.
pub fn one_way(duration: Duration) -> io::Result<Throughput> {
    let (mut near, mut far) = connected_pair()?;
    thread::scope(|scope| {
        let received = scope.spawn(move || {
            pin(1);
            let mut buffer = vec![0; ONE_WAY_BYTES];
            let mut bytes = 0_u64;
            let started = Instant::now();
            loop {
                match far.read(&mut buffer)? {
                    0 => return io::Result::Ok(Throughput { bytes, seconds: started.elapsed().as_secs_f64() }),
                    read => bytes += read as u64,
                }
            }
        });
        let sent = scope.spawn(move || {
            pin(0);
            let buffer = vec![1; ONE_WAY_BYTES];
            let started = Instant::now();
            while started.elapsed() < duration {
                near.write_all(&buffer)?;
            }
            near.shutdown(std::net::Shutdown::Write)
        });
        joined(sent)?;
        joined(received)
    })
}

fn connected_pair() -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let near = TcpStream::connect(listener.local_addr()?)?;
    let (far, _) = listener.accept()?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    Ok((near, far))
}

/// False at the end of the stream.
fn read_message(stream: &mut TcpStream, message: &mut [u8]) -> io::Result<bool> {
    match stream.read_exact(message) {
        Ok(()) => Ok(true),
        Err(end) if end.kind() == ErrorKind::UnexpectedEof => Ok(false),
        Err(other) => Err(other),
    }
}

/// Puts the calling thread on the n-th allowed core, where there are that many.
pub(super) fn pin(nth: usize) {
    if let Some(core) = core_affinity::get_core_ids().and_then(|cores| cores.get(nth).copied()) {
        core_affinity::set_for_current(core);
    }
}

pub(super) fn joined<T>(thread: thread::ScopedJoinHandle<'_, io::Result<T>>) -> io::Result<T> {
    thread.join().unwrap_or_else(|_| Err(io::Error::other("a measuring thread panicked")))
}
