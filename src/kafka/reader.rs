//! Reads the protocol's primitive types from bytes that may be anything.

use std::ops::Range;

use super::DecodeError;
use crate::limits;

/// A place in a request. A count of elements is never more than the elements that can be there, and [`limits::MAX_KAFKA_ELEMENTS`] for the whole request: what
/// a decoder allocates is bounded by what came.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Compact lengths and tagged fields (KIP-482).
    flexible: bool,
    /// Elements that may still come.
    elements: usize,
    /// Bytes behind `bytes` that belong to the request and have not come.
    beyond: usize,
}

impl<'a> Reader<'a> {
    /// At the start of `bytes`.
    pub fn new(bytes: &'a [u8], flexible: bool) -> Reader<'a> {
        Reader { bytes, at: 0, flexible, elements: limits::MAX_KAFKA_ELEMENTS, beyond: 0 }
    }

    /// At the start of `bytes` in the middle of a request: `beyond` bytes are to come behind them, and `elements` of [`Reader::elements`] may.
    pub fn partial(bytes: &'a [u8], flexible: bool, elements: usize, beyond: usize) -> Reader<'a> {
        Reader { bytes, at: 0, flexible, elements, beyond }
    }

    /// Elements that may still come.
    pub fn elements(&self) -> usize {
        self.elements
    }

    /// The same place, read in the flexible way or not.
    pub fn flexible(self, flexible: bool) -> Reader<'a> {
        Reader { flexible, ..self }
    }

    /// Where it is.
    pub fn position(&self) -> usize {
        self.at
    }

    /// Bytes that are left.
    pub fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// The next `len` bytes.
    ///
    /// # Errors
    /// There are fewer, as for all below.
    pub fn take(&mut self, len: usize) -> Result<&'a [u8], DecodeError> {
        let end = self.at.checked_add(len).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or(DecodeError::Short { needed: len, available: self.remaining() })?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    /// An 8-bit integer.
    pub fn i8(&mut self) -> Result<i8, DecodeError> {
        Ok(i8::from_be_bytes(self.array()?))
    }

    /// A 16-bit integer.
    pub fn i16(&mut self) -> Result<i16, DecodeError> {
        Ok(i16::from_be_bytes(self.array()?))
    }

    /// A 32-bit integer.
    pub fn i32(&mut self) -> Result<i32, DecodeError> {
        Ok(i32::from_be_bytes(self.array()?))
    }

    /// A 64-bit integer.
    pub fn i64(&mut self) -> Result<i64, DecodeError> {
        Ok(i64::from_be_bytes(self.array()?))
    }

    /// An unsigned varint of at most 32 bits.
    ///
    /// # Errors
    /// Also where it has more.
    pub fn varint(&mut self) -> Result<u32, DecodeError> {
        let mut value = 0;
        for shift in [0, 7, 14, 21, 28] {
            let [byte] = self.array()?;
            if shift == 28 && byte > 0x0f {
                break;
            }
            value |= u32::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(DecodeError::Varint)
    }

    /// A string that may be null.
    ///
    /// # Errors
    /// Also where it is not UTF-8.
    pub fn nullable_string(&mut self) -> Result<Option<&'a str>, DecodeError> {
        let len = match self.flexible {
            true => i64::from(self.varint()?) - 1,
            false => i64::from(self.i16()?),
        };
        self.text(len)
    }

    /// A string of the classic form wherever it stands: the header's client id.
    ///
    /// # Errors
    /// Also where it is not UTF-8.
    pub fn classic_nullable_string(&mut self) -> Result<Option<&'a str>, DecodeError> {
        let len = i64::from(self.i16()?);
        self.text(len)
    }

    fn text(&mut self, len: i64) -> Result<Option<&'a str>, DecodeError> {
        match self.nullable(len)? {
            None => Ok(None),
            Some(len) if len > limits::MAX_KAFKA_TEXT => Err(DecodeError::Length { len: len as i64 }),
            Some(len) => std::str::from_utf8(self.take(len)?).map(Some).map_err(|_| DecodeError::Text),
        }
    }

    /// A string.
    ///
    /// # Errors
    /// Also where it is null or not UTF-8.
    pub fn string(&mut self) -> Result<&'a str, DecodeError> {
        self.nullable_string()?.ok_or(DecodeError::Null)
    }

    /// Bytes that may be null, by where they are; they may end behind what is at hand, see [`Reader::skip_bytes`].
    pub fn bytes_range(&mut self) -> Result<Option<Range<usize>>, DecodeError> {
        let len = match self.flexible {
            true => i64::from(self.varint()?) - 1,
            false => i64::from(self.i32()?),
        };
        Ok(self.nullable(len)?.map(|len| self.at..self.at.saturating_add(len)))
    }

    /// Goes behind bytes that were read by [`Reader::bytes_range`].
    ///
    /// # Errors
    /// They are not all here.
    pub fn skip_bytes(&mut self, range: &Range<usize>) -> Result<(), DecodeError> {
        self.take(range.len()).map(drop)
    }

    /// The number of elements of an array that may be null, each of at least `least` bytes.
    ///
    /// # Errors
    /// Also where there can't be so many.
    pub fn nullable_count(&mut self, least: usize) -> Result<Option<usize>, DecodeError> {
        let count = match self.flexible {
            true => i64::from(self.varint()?) - 1,
            false => i64::from(self.i32()?),
        };
        let Some(count) = self.nullable(count)? else { return Ok(None) };
        self.count_elements(count, least)?;
        Ok(Some(count))
    }

    fn count_elements(&mut self, count: usize, least: usize) -> Result<(), DecodeError> {
        let most = ((self.remaining() + self.beyond) / least.max(1)).min(self.elements);
        if count > most {
            return Err(DecodeError::Count { count, most });
        }
        self.elements -= count;
        Ok(())
    }

    /// The number of elements of an array, each of at least `least` bytes.
    ///
    /// # Errors
    /// Also where it is null or there can't be so many.
    pub fn count(&mut self, least: usize) -> Result<usize, DecodeError> {
        self.nullable_count(least)?.ok_or(DecodeError::Null)
    }

    /// Passes over the tagged fields, where the version has them.
    pub fn tags(&mut self) -> Result<(), DecodeError> {
        if !self.flexible {
            return Ok(());
        }
        let count = self.varint()? as usize;
        self.count_elements(count, 2)?;
        for _ in 0..count {
            self.varint()?;
            let len = self.varint()? as usize;
            self.take(len)?;
        }
        Ok(())
    }

    /// -1 is null, anything else below 0 an error.
    fn nullable(&self, len: i64) -> Result<Option<usize>, DecodeError> {
        match len {
            -1 => Ok(None),
            len => usize::try_from(len).map(Some).map_err(|_| DecodeError::Length { len }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_strings_and_counts_of_both_forms() {
        let mut classic = Reader::new(&[1, 0, 2, 0, 0, 0, 3, 0, 1, b'x', 0xff, 0xff, 0, 0, 0, 2, 9, 9], false);
        assert_eq!((classic.i8(), classic.i16(), classic.i32()), (Ok(1), Ok(2), Ok(3)));
        assert_eq!((classic.string(), classic.nullable_string()), (Ok("x"), Ok(None)));
        assert_eq!((classic.count(1), classic.remaining()), (Ok(2), 2));
        let mut compact = Reader::new(&[2, b'x', 0, 3, 9, 9, 1, 5, 2, 7, 7], true);
        assert_eq!((compact.string(), compact.nullable_string(), compact.count(1)), (Ok("x"), Ok(None), Ok(2)));
        assert_eq!(compact.take(2), Ok(&[9, 9][..]));
        assert_eq!((compact.tags(), compact.remaining()), (Ok(()), 0));
    }

    #[test]
    fn a_count_is_bounded_by_the_bytes_that_are_there() {
        let bytes = [0x7f, 0xff, 0xff, 0xff, 1, 2, 3, 4];
        assert_eq!(Reader::new(&bytes, false).count(2), Err(DecodeError::Count { count: 0x7fff_ffff, most: 2 }));
        let mut many = (limits::MAX_KAFKA_ELEMENTS as i32 + 1).to_be_bytes().to_vec();
        many.resize(2 * limits::MAX_KAFKA_ELEMENTS, 0);
        assert!(matches!(Reader::new(&many, false).count(1), Err(DecodeError::Count { .. })));
    }

    #[test]
    fn what_is_cut_or_impossible_is_an_error() {
        assert_eq!(Reader::new(&[0], false).i16(), Err(DecodeError::Short { needed: 2, available: 1 }));
        assert_eq!(Reader::new(&[0xff, 0xfe], false).nullable_string(), Err(DecodeError::Length { len: -2 }));
        assert_eq!(Reader::new(&[0xff, 0xff], false).string(), Err(DecodeError::Null));
        assert_eq!(Reader::new(&[0, 1, 0xff], false).string(), Err(DecodeError::Text));
        assert_eq!(Reader::new(&[0xff; 5], true).varint(), Err(DecodeError::Varint));
        assert_eq!(Reader::new(&[0xff, 0xff, 0xff, 0xff, 0x0f], true).varint(), Ok(u32::MAX));
    }
}
