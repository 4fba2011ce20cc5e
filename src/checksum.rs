//! Checksums: which one guards what, and the crates that compute them.
//!
//! - [`crc32`] (IEEE) guards our own formats: frames' headers, journal groups, file headers, checkpoints.
//! - [`crc32c`] (Castagnoli) is the one that Kafka's record batch carries, over its bytes from 21 on.
//! - [`running_hash`] (CRC-64/NVME) chains the headers of a partition's batches: it covers what a batch's own
//!   CRC leaves out (base offset, length, epoch, magic) and the order of the batches.
//!
//! All three find accidents. None withstands somebody who means to deceive.

use crc_fast::CrcAlgorithm::Crc32Iscsi;

/// Bytes of a batch's header that [`running_hash`] covers.
const HASHED_HEADER: usize = 61;

/// CRC-32 (IEEE) of `bytes`.
#[must_use]
pub fn crc32(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes)
}

/// CRC-32 (IEEE) of `bytes`, continued from `seed`.
///
/// With the CRC of earlier bytes as the seed this is the CRC of both together; with an identity as the seed it ties the
/// bytes to their place.
#[must_use]
pub fn crc32_seeded(seed: u32, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(seed);
    hasher.update(bytes);
    hasher.finalize()
}

/// CRC-32 (IEEE) of bytes that come in pieces.
#[derive(Clone, Debug, Default)]
pub struct Crc32(crc32fast::Hasher);

impl Crc32 {
    /// Of no bytes yet.
    #[must_use]
    pub fn new() -> Crc32 {
        Crc32::default()
    }

    /// Takes the next piece.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The CRC of all pieces.
    #[must_use]
    pub fn finish(self) -> u32 {
        self.0.finalize()
    }
}

/// CRC-32C (Castagnoli, also called CRC-32/ISCSI) of `bytes`.
#[must_use]
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(bytes)
}

/// CRC-32C of bytes that come in pieces.
#[derive(Clone, Copy, Debug)]
pub struct Crc32c(crc_fast::Digest);

impl Crc32c {
    /// Of no bytes yet.
    #[must_use]
    pub fn new() -> Crc32c {
        Crc32c(crc_fast::Digest::new(Crc32Iscsi))
    }

    /// Takes the next piece.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The CRC of all pieces.
    #[must_use]
    pub fn finish(self) -> u32 {
        self.0.finalize() as u32
    }
}

impl Default for Crc32c {
    fn default() -> Crc32c {
        Crc32c::new()
    }
}

/// CRC-32C of two byte strings one after the other, from the CRC-32C of each and the second one's length.
///
/// Some 10 us, whatever the length.
#[must_use]
pub fn crc32c_combine(first: u32, second: u32, second_len: u64) -> u32 {
    crc_fast::checksum_combine(Crc32Iscsi, u64::from(first), u64::from(second), second_len) as u32
}

/// CRC-32C of `whole` with its beginning exchanged, without reading the rest.
///
/// `whole` is the CRC of a beginning and a rest of `rest_len` bytes; `old` and `new` are CRCs of the beginning before and after, of
/// equal length.
#[must_use]
pub fn crc32c_exchange(whole: u32, old: u32, new: u32, rest_len: u64) -> u32 {
    // Combining is shift(first, rest_len) ^ second: putting `old` in a second time takes it out and leaves the CRC of the rest.
    let rest = crc32c_combine(old, whole, rest_len);
    crc32c_combine(new, rest, rest_len)
}

/// The running hash of a partition after one more batch: CRC-64/NVME of `previous` (8 bytes, little-endian) and the first 61 bytes of
/// the batch as stored.
///
/// Before the batch at offset 0 it is 0.
///
/// # Panics
/// When `header61` is not 61 bytes.
#[must_use]
pub fn running_hash(previous: u64, header61: &[u8]) -> u64 {
    assert_eq!(header61.len(), HASHED_HEADER, "the running hash covers exactly the batch header");
    let mut bytes = [0; 8 + HASHED_HEADER];
    bytes[..8].copy_from_slice(&previous.to_le_bytes());
    bytes[8..].copy_from_slice(header61);
    crc_fast::crc64_nvme(&bytes)
}

/// The running hash before a run of `batches` batches, from the one after it (`end`) and the one that the same batches give from 0 (`from_zero`).
///
/// A CRC is linear: what the start adds to the end is shifted through [`running_hash`]'s bytes once per batch, and can be shifted back.
#[must_use]
pub fn running_hash_start(end: u64, from_zero: u64, batches: u64) -> u64 {
    Shift::back().apply(end ^ from_zero, batches)
}

/// What a running hash that does not begin with 0 adds to the one behind some batches.
///
/// A log whose start is known only after its end was chosen ([`running_hash_start`]) is hashed from 0 first.
#[derive(Clone, Debug)]
pub struct RunningHashFrom {
    start: u64,
    shift: Shift,
}

impl RunningHashFrom {
    /// For batches whose running hash begins with `start`.
    #[must_use]
    pub fn new(start: u64) -> RunningHashFrom {
        RunningHashFrom { start, shift: Shift::forward() }
    }

    /// The running hash behind `batches` batches that give `from_zero` from 0.
    #[must_use]
    pub fn after(&mut self, batches: u64, from_zero: u64) -> u64 {
        from_zero ^ self.shift.apply(self.start, batches)
    }
}

/// A step of a running hash over one batch of zeros, as a matrix over bits (its columns), and the powers of it that were needed: a number of steps takes as many of them
/// as it has bits.
#[derive(Clone, Debug)]
struct Shift {
    /// Of 1, 2, 4 ... steps.
    powers: Vec<[u64; 64]>,
}

/// CRC-64/NVME's polynomial, reflected.
const POLYNOMIAL: u64 = 0x9A6C_9329_AC4B_C9B5;
/// Bits that a step goes over.
const STEP_BITS: usize = 8 * (8 + HASHED_HEADER);

impl Shift {
    fn forward() -> Shift {
        Shift::of(|state| (state >> 1) ^ (POLYNOMIAL & (state & 1).wrapping_neg()))
    }

    fn back() -> Shift {
        Shift::of(|state| {
            let carry = state >> 63;
            ((state ^ (POLYNOMIAL & carry.wrapping_neg())) << 1) | carry
        })
    }

    fn of(bit: impl Fn(u64) -> u64) -> Shift {
        let step = |column: usize| (0..STEP_BITS).fold(1 << column, |state, _| bit(state));
        Shift { powers: vec![std::array::from_fn(step)] }
    }

    fn apply(&mut self, state: u64, steps: u64) -> u64 {
        let (mut state, mut left, mut power) = (state, steps, 0);
        while left > 0 {
            if power == self.powers.len() {
                let last = self.powers[power - 1];
                self.powers.push(last.map(|column| times(&last, column)));
            }
            if left & 1 == 1 {
                state = times(&self.powers[power], state);
            }
            (left, power) = (left >> 1, power + 1);
        }
        state
    }
}

fn times(matrix: &[u64; 64], state: u64) -> u64 {
    let (mut sum, mut left) = (0, state);
    while left != 0 {
        sum ^= matrix[left.trailing_zeros() as usize];
        left &= left - 1;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGITS: &[u8] = b"123456789";

    /// The check values of the CRC catalogues.
    #[test]
    fn known_check_values() {
        assert_eq!(crc32(DIGITS), 0xCBF4_3926);
        assert_eq!(crc32c(DIGITS), 0xE306_9283);
        assert_eq!(crc_fast::crc64_nvme(DIGITS), 0xAE8B_1486_0A79_9888);
    }

    /// RFC 3720, appendix B.4.
    #[test]
    fn crc32c_of_the_rfc_examples() {
        assert_eq!(crc32c(&[0; 32]), 0x8A91_36AA);
        assert_eq!(crc32c(&[0xff; 32]), 0x62A8_AB43);
        assert_eq!(crc32c(&(0..32).collect::<Vec<u8>>()), 0x46DD_794E);
    }

    #[test]
    fn pieces_give_the_crc_of_the_whole() {
        let bytes: Vec<u8> = (0..5000u32).map(|i| (i * 31) as u8).collect();
        for cut in [0, 1, 7, 40, 61, 256, 4095, 4999, 5000] {
            let mut ieee = Crc32::new();
            ieee.update(&bytes[..cut]);
            ieee.update(&bytes[cut..]);
            assert_eq!(ieee.finish(), crc32(&bytes));
            assert_eq!(crc32_seeded(crc32(&bytes[..cut]), &bytes[cut..]), crc32(&bytes));
            let mut castagnoli = Crc32c::new();
            castagnoli.update(&bytes[..cut]);
            castagnoli.update(&bytes[cut..]);
            assert_eq!(castagnoli.finish(), crc32c(&bytes));
        }
    }

    #[test]
    fn an_exchanged_beginning_needs_no_look_at_the_rest() {
        for rest_len in [0, 1, 15, 100, 5000] {
            let rest: Vec<u8> = (0..rest_len as u32).map(|i| (i * 7) as u8).collect();
            let whole = |head: &[u8]| crc32c(&[head, &rest].concat());
            let (old, new) = (b"the old beginning", b"the new beginning");
            assert_eq!(crc32c_combine(crc32c(old), crc32c(&rest), rest_len), whole(old));
            assert_eq!(crc32c_exchange(whole(old), crc32c(old), crc32c(new), rest_len), whole(new));
        }
    }

    #[test]
    fn a_running_hash_is_followed_back_to_its_start() {
        let headers: Vec<Vec<u8>> = (0..9u8).map(|n| (0..61).map(|at| (at * 3) ^ n).collect()).collect();
        for start in [0, 1, 0xdead_beef_0123_4567, u64::MAX] {
            for batches in 0..=headers.len() {
                let run = |from| headers[..batches].iter().fold(from, |hash, header| running_hash(hash, header));
                assert_eq!(running_hash_start(run(start), run(0), batches as u64), start, "{batches} batches");
                assert_eq!(RunningHashFrom::new(start).after(batches as u64, run(0)), run(start), "{batches} batches");
            }
        }
    }

    #[test]
    fn the_running_hash_is_the_crc64_of_hash_and_header() {
        let header: Vec<u8> = (0..61).collect();
        let mut joined = 0x0102_0304_0506_0708u64.to_le_bytes().to_vec();
        joined.extend_from_slice(&header);
        assert_eq!(running_hash(0x0102_0304_0506_0708, &header), crc_fast::crc64_nvme(&joined));
        let (first, second) = (vec![1; 61], vec![2; 61]);
        assert_ne!(running_hash(running_hash(0, &first), &second), running_hash(running_hash(0, &second), &first));
    }
}
