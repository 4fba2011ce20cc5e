//! Zig-zag varints of Kafka's record format: 7 bits a byte, least significant first, small magnitudes of either sign short.

use super::RecordFault;

/// Most bytes of a 32-bit varint.
pub const MAX_VARINT: usize = 5;
/// Most bytes of a 64-bit varint.
pub const MAX_VARLONG: usize = 10;

/// Bytes that `value` takes as a varint, 1 to 5.
#[must_use]
pub const fn varint_len(value: i32) -> usize {
    unsigned_len(zigzag32(value) as u64)
}

/// Bytes that `value` takes as a varint, 1 to 10.
#[must_use]
pub const fn varlong_len(value: i64) -> usize {
    unsigned_len(zigzag64(value))
}

/// Writes `value` at the start of `out`, returns how many bytes.
///
/// # Panics
/// When `out` is shorter than that; [`MAX_VARINT`] bytes are always enough.
pub fn write_varint(out: &mut [u8], value: i32) -> usize {
    write_unsigned(out, u64::from(zigzag32(value)))
}

/// Writes `value` at the start of `out`, returns how many bytes.
///
/// # Panics
/// When `out` is shorter than that; [`MAX_VARLONG`] bytes are always enough.
pub fn write_varlong(out: &mut [u8], value: i64) -> usize {
    write_unsigned(out, zigzag64(value))
}

const fn zigzag32(value: i32) -> u32 {
    ((value << 1) ^ (value >> 31)) as u32
}

const fn zigzag64(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

const fn unsigned_len(value: u64) -> usize {
    let bits = u64::BITS - (value | 1).leading_zeros();
    bits.div_ceil(7) as usize
}

#[inline]
fn write_unsigned(out: &mut [u8], mut value: u64) -> usize {
    let mut at = 0;
    while value >= 0x80 {
        out[at] = value as u8 | 0x80;
        value >>= 7;
        at += 1;
    }
    out[at] = value as u8;
    at + 1
}

/// Reads fields off the front of bytes that nobody has checked.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// From `at` on.
    ///
    /// # Panics
    /// When `at` is beyond the end.
    #[must_use]
    pub fn new(bytes: &'a [u8], at: usize) -> Reader<'a> {
        assert!(at <= bytes.len(), "a reader starts inside its bytes");
        Reader { bytes, at }
    }

    /// Where the next field starts.
    #[must_use]
    pub fn position(&self) -> usize {
        self.at
    }

    /// Bytes not yet read.
    #[must_use]
    pub fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// Takes the next `len` bytes.
    ///
    /// # Errors
    /// [`RecordFault::Truncated`] when there are fewer.
    #[inline]
    pub fn take(&mut self, len: usize) -> Result<&'a [u8], RecordFault> {
        let available = self.remaining();
        if len > available {
            return Err(RecordFault::Truncated { needed: len, available });
        }
        let taken = &self.bytes[self.at..self.at + len];
        self.at += len;
        Ok(taken)
    }

    /// Takes a varint of 32 bits.
    ///
    /// # Errors
    /// [`RecordFault::Varint`] when it has more, [`RecordFault::Truncated`] when the bytes end in it.
    #[inline]
    pub fn varint(&mut self) -> Result<i32, RecordFault> {
        let raw = self.unsigned(MAX_VARINT)?;
        let raw = u32::try_from(raw).map_err(|_| RecordFault::Varint)?;
        Ok((raw >> 1) as i32 ^ -((raw & 1) as i32))
    }

    /// Takes a varint of 64 bits.
    ///
    /// # Errors
    /// As [`Reader::varint`].
    #[inline]
    pub fn varlong(&mut self) -> Result<i64, RecordFault> {
        let raw = self.unsigned(MAX_VARLONG)?;
        Ok((raw >> 1) as i64 ^ -((raw & 1) as i64))
    }

    #[inline]
    fn unsigned(&mut self, max_len: usize) -> Result<u64, RecordFault> {
        let rest = &self.bytes[self.at..];
        match rest.first() {
            Some(&byte) if byte < 0x80 => {
                self.at += 1;
                Ok(u64::from(byte))
            }
            _ => self.unsigned_slow(max_len),
        }
    }

    fn unsigned_slow(&mut self, max_len: usize) -> Result<u64, RecordFault> {
        let rest = &self.bytes[self.at..];
        let mut value = 0u64;
        for (i, &byte) in rest.iter().take(max_len).enumerate() {
            let bits = u64::from(byte & 0x7f);
            let shifted = bits << (7 * i);
            if shifted >> (7 * i) != bits {
                return Err(RecordFault::Varint);
            }
            value |= shifted;
            if byte < 0x80 {
                self.at += i + 1;
                return Ok(value);
            }
        }
        if rest.len() < max_len {
            Err(RecordFault::Truncated { needed: rest.len() + 1, available: rest.len() })
        } else {
            Err(RecordFault::Varint)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes_of(value: i32) -> Vec<u8> {
        let mut out = [0; MAX_VARINT];
        let len = write_varint(&mut out, value);
        assert_eq!(len, varint_len(value));
        out[..len].to_vec()
    }

    #[test]
    fn known_encodings() {
        assert_eq!(bytes_of(0), [0x00]);
        assert_eq!(bytes_of(-1), [0x01]);
        assert_eq!(bytes_of(1), [0x02]);
        assert_eq!(bytes_of(63), [0x7e]);
        assert_eq!(bytes_of(-64), [0x7f]);
        assert_eq!(bytes_of(64), [0x80, 0x01]);
        assert_eq!(bytes_of(8192), [0x80, 0x80, 0x01]);
        assert_eq!(bytes_of(i32::MAX), [0xfe, 0xff, 0xff, 0xff, 0x0f]);
        assert_eq!(bytes_of(i32::MIN), [0xff, 0xff, 0xff, 0xff, 0x0f]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let fault = |bytes: &[u8]| Reader::new(bytes, 0).varint().unwrap_err();
        assert_eq!(fault(&[0xff, 0xff, 0xff, 0xff, 0x1f]), RecordFault::Varint);
        assert_eq!(fault(&[0x80; 6]), RecordFault::Varint);
        assert_eq!(fault(&[0x80, 0x80]), RecordFault::Truncated { needed: 3, available: 2 });
        assert_eq!(fault(&[]), RecordFault::Truncated { needed: 1, available: 0 });
        let long = |bytes: &[u8]| Reader::new(bytes, 0).varlong();
        assert_eq!(long(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]), Ok(i64::MIN));
        assert_eq!(long(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02]), Err(RecordFault::Varint));
        assert_eq!(long(&[0x80; 11]), Err(RecordFault::Varint));
    }

    proptest::proptest! {
        #[test]
        fn round_trips(value: i64, shift in 0..64u32) {
            let value = value >> shift;
            let mut out = [0; MAX_VARLONG];
            let len = write_varlong(&mut out, value);
            proptest::prop_assert_eq!(len, varlong_len(value));
            let mut reader = Reader::new(&out[..len], 0);
            proptest::prop_assert_eq!(reader.varlong(), Ok(value));
            proptest::prop_assert_eq!(reader.remaining(), 0);
            let narrow = value as i32;
            let len = write_varint(&mut out, narrow);
            proptest::prop_assert_eq!(len, varint_len(narrow));
            proptest::prop_assert_eq!(Reader::new(&out[..len], 0).varint(), Ok(narrow));
        }
    }
}
