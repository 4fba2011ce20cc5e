//! Writes the protocol's primitive types.

/// An answer in the making: bytes, and which form lengths have.
#[derive(Debug)]
pub struct Writer {
    out: Vec<u8>,
    flexible: bool,
}

impl Writer {
    /// An answer's frame with its header: room for the length, the correlation id, and the tagged fields of the flexible form.
    pub fn answer(correlation: i32, flexible: bool, capacity: usize) -> Writer {
        let mut writer = Writer { out: Vec::with_capacity(capacity + 16), flexible };
        writer.i32(0);
        writer.i32(correlation);
        writer.tags();
        writer
    }

    /// The bytes so far; what follows begins anew.
    pub fn split(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.out)
    }

    /// The whole frame, its length at its place.
    pub fn finish(self) -> Vec<u8> {
        let mut frame = self.out;
        let len = (frame.len() - 4) as u32;
        put_length(&mut frame, len);
        frame
    }

    /// A boolean.
    pub fn bool(&mut self, value: bool) {
        self.out.push(u8::from(value));
    }

    /// A 16-bit integer.
    pub fn i16(&mut self, value: i16) {
        self.out.extend_from_slice(&value.to_be_bytes());
    }

    /// A 32-bit integer.
    pub fn i32(&mut self, value: i32) {
        self.out.extend_from_slice(&value.to_be_bytes());
    }

    /// A 64-bit integer.
    pub fn i64(&mut self, value: i64) {
        self.out.extend_from_slice(&value.to_be_bytes());
    }

    /// An unsigned varint.
    pub fn varint(&mut self, mut value: u32) {
        while value > 0x7f {
            self.out.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.out.push(value as u8);
    }

    /// A string, or null. One of more than 32,767 bytes is cut there: none of ours is, but the words of a refusal might be.
    pub fn nullable_string(&mut self, text: Option<&str>) {
        let Some(mut text) = text else {
            return match self.flexible {
                true => self.varint(0),
                false => self.i16(-1),
            };
        };
        if text.len() > i16::MAX as usize {
            text = &text[..text.floor_char_boundary(i16::MAX as usize)];
        }
        match self.flexible {
            true => self.varint(text.len() as u32 + 1),
            false => self.i16(text.len() as i16),
        }
        self.out.extend_from_slice(text.as_bytes());
    }

    /// A string.
    pub fn string(&mut self, text: &str) {
        self.nullable_string(Some(text));
    }

    /// The number of elements of an array.
    pub fn count(&mut self, count: usize) {
        match self.flexible {
            true => self.varint(count as u32 + 1),
            false => self.i32(count as i32),
        }
    }

    /// The length of bytes that follow.
    pub fn bytes_len(&mut self, len: usize) {
        self.count(len);
    }

    /// No tagged fields, where the version has them.
    pub fn tags(&mut self) {
        if self.flexible {
            self.out.push(0);
        }
    }
}

/// Puts the length of a frame at its place, the first four bytes.
pub fn put_length(frame: &mut [u8], len: u32) {
    frame[..4].copy_from_slice(&len.to_be_bytes());
}
