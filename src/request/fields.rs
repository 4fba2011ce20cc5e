//! Fields of Kafka's non-flexible encoding: big-endian numbers, strings with a 16-bit length, bytes and arrays with a 32-bit one.
//!
//! The records of `__consumer_offsets` and the blobs that consumers put into a join are made of these. Writing asserts its bounds
//! (they are our own values); reading any bytes gives a value or an error and never panics.

use bytes::Bytes;

use crate::limits;

/// Bytes that are not what they should be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FieldError {
    /// The bytes end within a field.
    #[error("{field} needs {needed} bytes, {left} are left")]
    Truncated {
        /// Which field.
        field: &'static str,
        /// Bytes it needs.
        needed: usize,
        /// Bytes that are there.
        left: usize,
    },
    /// A length that is negative (and not the -1 of a field that may be null).
    #[error("{field} has length {length}")]
    Length {
        /// Which field.
        field: &'static str,
        /// As it stands there.
        length: i32,
    },
    /// A string that is not UTF-8.
    #[error("{field} is not UTF-8")]
    NotUtf8 {
        /// Which field.
        field: &'static str,
    },
    /// More bytes than the fields take.
    #[error("{count} bytes after the last field")]
    Trailing {
        /// How many.
        count: usize,
    },
}

/// Takes fields from the front of some bytes.
#[derive(Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// From the first of these bytes on.
    pub fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { rest: bytes }
    }

    /// A number of 16 bits.
    ///
    /// # Errors
    /// The bytes end before it does.
    pub fn i16(&mut self, field: &'static str) -> Result<i16, FieldError> {
        self.take(field).map(i16::from_be_bytes)
    }

    /// A number of 32 bits.
    ///
    /// # Errors
    /// The bytes end before it does.
    pub fn i32(&mut self, field: &'static str) -> Result<i32, FieldError> {
        self.take(field).map(i32::from_be_bytes)
    }

    /// A number of 64 bits.
    ///
    /// # Errors
    /// The bytes end before it does.
    pub fn i64(&mut self, field: &'static str) -> Result<i64, FieldError> {
        self.take(field).map(i64::from_be_bytes)
    }

    /// A string that is there.
    ///
    /// # Errors
    /// What is wrong with the field.
    pub fn string(&mut self, field: &'static str) -> Result<&'a str, FieldError> {
        self.nullable_string(field)?.ok_or(FieldError::Length { field, length: -1 })
    }

    /// A string, or null.
    ///
    /// # Errors
    /// What is wrong with the field.
    pub fn nullable_string(&mut self, field: &'static str) -> Result<Option<&'a str>, FieldError> {
        let length = i32::from(self.i16(field)?);
        let Some(bytes) = self.nullable_slice(length, field)? else { return Ok(None) };
        std::str::from_utf8(bytes).map(Some).map_err(|_| FieldError::NotUtf8 { field })
    }

    /// Bytes that are there, copied: what is kept must not hold on to the buffer that it came in.
    ///
    /// # Errors
    /// What is wrong with the field.
    pub fn bytes(&mut self, field: &'static str) -> Result<Bytes, FieldError> {
        self.nullable_bytes(field)?.ok_or(FieldError::Length { field, length: -1 })
    }

    /// Bytes, copied, or null.
    ///
    /// # Errors
    /// What is wrong with the field.
    pub fn nullable_bytes(&mut self, field: &'static str) -> Result<Option<Bytes>, FieldError> {
        let length = self.i32(field)?;
        Ok(self.nullable_slice(length, field)?.map(Bytes::copy_from_slice))
    }

    /// Number of an array's elements, each of at least `least` bytes: a count that the rest cannot hold is refused before anything is reserved.
    ///
    /// # Errors
    /// What is wrong with the field.
    pub fn count(&mut self, least: usize, field: &'static str) -> Result<usize, FieldError> {
        let length = self.i32(field)?;
        let count = usize::try_from(length).map_err(|_| FieldError::Length { field, length })?;
        let needed = count.saturating_mul(least);
        if needed > self.rest.len() {
            return Err(FieldError::Truncated { field, needed, left: self.rest.len() });
        }
        Ok(count)
    }

    /// Nothing may be left.
    ///
    /// # Errors
    /// What is wrong with the field.
    pub fn finish(self) -> Result<(), FieldError> {
        if self.rest.is_empty() { Ok(()) } else { Err(FieldError::Trailing { count: self.rest.len() }) }
    }

    fn take<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], FieldError> {
        let truncated = FieldError::Truncated { field, needed: N, left: self.rest.len() };
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or(truncated)?;
        self.rest = rest;
        Ok(*taken)
    }

    fn nullable_slice(&mut self, length: i32, field: &'static str) -> Result<Option<&'a [u8]>, FieldError> {
        if length == -1 {
            return Ok(None);
        }
        let needed = usize::try_from(length).map_err(|_| FieldError::Length { field, length })?;
        let truncated = FieldError::Truncated { field, needed, left: self.rest.len() };
        let (taken, rest) = self.rest.split_at_checked(needed).ok_or(truncated)?;
        self.rest = rest;
        Ok(Some(taken))
    }
}

/// Puts fields behind each other.
#[derive(Debug, Default)]
pub struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// Begins with the version, as every record and blob does.
    pub fn versioned(version: i16) -> Writer {
        let mut writer = Writer::default();
        writer.i16(version);
        writer
    }

    /// A number of 16 bits.
    pub fn i16(&mut self, value: i16) {
        self.bytes.extend_from_slice(&value.to_be_bytes());
    }

    /// A number of 32 bits.
    pub fn i32(&mut self, value: i32) {
        self.bytes.extend_from_slice(&value.to_be_bytes());
    }

    /// A number of 64 bits.
    pub fn i64(&mut self, value: i64) {
        self.bytes.extend_from_slice(&value.to_be_bytes());
    }

    /// A string that is there.
    ///
    /// # Panics
    /// When the string is longer than [`limits::STRING_MAX`]: every string was bounded when it came in.
    pub fn string(&mut self, value: &str) {
        assert!(value.len() <= limits::STRING_MAX, "a string of {} bytes was let in", value.len());
        self.i16(value.len() as i16);
        self.bytes.extend_from_slice(value.as_bytes());
    }

    /// A string, or null.
    ///
    /// # Panics
    /// As [`Writer::string`].
    pub fn nullable_string(&mut self, value: Option<&str>) {
        match value {
            Some(value) => self.string(value),
            None => self.i16(-1),
        }
    }

    /// Bytes that are there.
    ///
    /// # Panics
    /// As [`Writer::count`].
    pub fn bytes(&mut self, value: &[u8]) {
        self.count(value.len());
        self.bytes.extend_from_slice(value);
    }

    /// Bytes, or null.
    ///
    /// # Panics
    /// As [`Writer::count`].
    pub fn nullable_bytes(&mut self, value: Option<&[u8]>) {
        match value {
            Some(value) => self.bytes(value),
            None => self.i32(-1),
        }
    }

    /// Number of an array's elements, which are to follow.
    ///
    /// # Panics
    /// When the number does not fit: bounds are far below.
    pub fn count(&mut self, count: usize) {
        self.i32(i32::try_from(count).expect("bounds are far below 2 GiB"));
    }

    /// All that was put.
    pub fn finish(self) -> Bytes {
        self.bytes.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_come_back_as_they_were_put() {
        let mut writer = Writer::versioned(7);
        writer.string("grüße");
        writer.nullable_string(None);
        writer.nullable_bytes(Some(b"ab"));
        writer.nullable_bytes(None);
        writer.i64(-2);
        let bytes = writer.finish();
        let mut reader = Reader::new(&bytes);
        assert_eq!(reader.i16("version"), Ok(7));
        assert_eq!(reader.string("a"), Ok("grüße"));
        assert_eq!(reader.nullable_string("b"), Ok(None));
        assert_eq!(reader.bytes("c"), Ok(Bytes::from_static(b"ab")));
        assert_eq!(reader.nullable_bytes("d"), Ok(None));
        assert_eq!(reader.i64("e"), Ok(-2));
        assert_eq!(reader.finish(), Ok(()));
    }

    #[test]
    fn each_wrong_length_has_its_error() {
        assert_eq!(Reader::new(&[0]).i16("v"), Err(FieldError::Truncated { field: "v", needed: 2, left: 1 }));
        assert_eq!(Reader::new(&[0, 3, b'a']).string("s"), Err(FieldError::Truncated { field: "s", needed: 3, left: 1 }));
        assert_eq!(Reader::new(&[0xff, 0xff]).string("s"), Err(FieldError::Length { field: "s", length: -1 }));
        assert_eq!(Reader::new(&[0xff, 0xfe]).nullable_string("s"), Err(FieldError::Length { field: "s", length: -2 }));
        assert_eq!(Reader::new(&[0, 1, 0xff]).string("s"), Err(FieldError::NotUtf8 { field: "s" }));
        assert_eq!(
            Reader::new(&[0x7f, 0xff, 0xff, 0xff]).count(4, "n"),
            Err(FieldError::Truncated { field: "n", needed: 8589934588, left: 0 })
        );
        assert_eq!(Reader::new(&[1]).finish(), Err(FieldError::Trailing { count: 1 }));
    }
}
