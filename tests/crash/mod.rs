//! Crash enumeration: what a disk may hold after a crash at any moment of a trace, and whether a store recovered from it still has all that was
//! acknowledged.
//!
//! - `disk`: files and names in memory; the rules of what a sync makes durable; images of the disk after a crash.
//! - `trace`: the events that a broker records, read from its trace file.
//! - `check`: recovers an image and compares it with the acknowledgements.
//! - `writer`: a small broker of one thread that keeps the store's rules, or breaks one of them.

#![allow(dead_code, reason = "each test uses a part")]

pub mod check;
pub mod disk;
pub mod trace;
pub mod writer;

/// A small generator of numbers that look random (splitmix64): everything in a test comes from its seed.
#[derive(Clone, Debug)]
pub struct Numbers(pub u64);

impl Numbers {
    /// The next one.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below a bound.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.draw() % bound
    }
}
