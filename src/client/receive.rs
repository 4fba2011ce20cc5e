//! From a stream of bytes to frames, without copying what is large. Pure: the shell reads into the room that this gives.
//!
//! Small frames come in a shared buffer, many at a time, and are slices of it. As soon as the prefix of a frame that does not fit is there, a buffer of
//! exactly the frame's size takes over: the rest is read straight into it, and its records are slices of it.

use bytes::{Bytes, BytesMut};

use crate::limits;
use crate::wire::{FrameError, FramePrefix, peek_response};

/// A frame whose header has passed its checksum.
#[derive(Debug)]
pub(super) struct Frame {
    pub header: Bytes,
    pub payload: Bytes,
}

/// The bytes of one connection that are not yet frames.
#[derive(Debug)]
pub(super) struct Receiver {
    buffer: BytesMut,
    max_frame: usize,
}

impl Receiver {
    /// For frames of at most `max_frame` bytes.
    pub fn new(max_frame: usize) -> Receiver {
        Receiver { buffer: BytesMut::new(), max_frame }
    }

    /// Where to read into: appended bytes count as received. There is room for at least one byte, and for no more than the frame that is
    /// on its way where that is a large one, so that what follows it does not make its buffer grow.
    pub fn room(&mut self) -> &mut BytesMut {
        // A length that is refused is not asked for here: `next_frame` says so.
        let announced = peek_response(&self.buffer, self.max_frame).ok().flatten().map_or(0, |prefix| prefix.total_len());
        if announced > limits::RECEIVE_BUFFER {
            if self.buffer.capacity() < announced {
                let mut own = BytesMut::with_capacity(announced);
                own.extend_from_slice(&self.buffer);
                self.buffer = own;
            }
        } else if self.buffer.capacity() - self.buffer.len() < limits::RECEIVE_BUFFER / 4 {
            self.buffer.reserve(limits::RECEIVE_BUFFER);
        }
        &mut self.buffer
    }

    /// The next whole frame, if it is there.
    ///
    /// # Errors
    /// The bytes are no frame: the connection is of no more use.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        let Some(prefix) = peek_response(&self.buffer, self.max_frame)? else { return Ok(None) };
        if self.buffer.len() < prefix.total_len() {
            return Ok(None);
        }
        let frame = self.buffer.split_to(prefix.total_len()).freeze();
        parts(&prefix, &frame).map(Some)
    }
}

fn parts(prefix: &FramePrefix, frame: &Bytes) -> Result<Frame, FrameError> {
    let header = frame.slice(prefix.header_range());
    prefix.check_header(&header)?;
    Ok(Frame { header, payload: frame.slice(prefix.payload_range()) })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::request::{FetchResult, Fetched, Response};
    use crate::types::{TopicId, TopicPartition};
    use crate::wire::{ResponseEncoder, decode_response, encode_response};

    fn frame(correlation: u64, payload: &[u8]) -> Vec<u8> {
        let fetched = Fetched { high_watermark: 0, log_start: 0, bytes: payload.len() as u32, preferred: None };
        let partition = TopicPartition { topic: TopicId([0; 16]), partition: 0 };
        let mut out = vec![];
        let response = Response::Fetch(vec![FetchResult { partition, outcome: Ok(fetched) }]);
        encode_response(&mut ResponseEncoder::new(), correlation, &response, payload.len(), &mut out);
        out.extend_from_slice(payload);
        out
    }

    /// Reads as a socket would: as much as there is room for, but at most `chunk`.
    fn feed(receiver: &mut Receiver, bytes: &mut &[u8], chunk: usize) {
        let room = receiver.room();
        let count = (room.capacity() - room.len()).min(chunk).min(bytes.len());
        assert!(count > 0);
        room.extend_from_slice(&bytes[..count]);
        *bytes = &bytes[count..];
    }

    proptest! {
        #[test]
        fn frames_come_out_as_they_went_in(lens in proptest::collection::vec(0usize..200_000, 1..8), chunk in 1usize..100_000) {
            let chunk = chunk.max(lens.iter().sum::<usize>() / 500);
            let payloads: Vec<Vec<u8>> = lens.iter().map(|len| (0..*len).map(|i| i as u8).collect()).collect();
            let stream: Vec<u8> = payloads.iter().enumerate().flat_map(|(i, payload)| frame(i as u64, payload)).collect();
            let mut receiver = Receiver::new(limits::MAX_FRAME);
            let mut rest = &stream[..];
            let mut found = 0;
            while !rest.is_empty() {
                feed(&mut receiver, &mut rest, chunk);
                while let Some(frame) = receiver.next_frame().unwrap() {
                    prop_assert_eq!(decode_response(&frame.header, frame.payload.len()).unwrap().0, found as u64);
                    prop_assert_eq!(&frame.payload[..], &payloads[found][..]);
                    found += 1;
                }
            }
            prop_assert_eq!(found, payloads.len());
        }
    }

    #[test]
    fn a_large_frame_gets_a_buffer_of_its_size_and_is_not_copied_again() {
        let payload = vec![7; 10 << 20];
        let stream = frame(1, &payload);
        let mut receiver = Receiver::new(limits::MAX_FRAME);
        let mut rest = &stream[..];
        feed(&mut receiver, &mut rest, 5000);
        feed(&mut receiver, &mut rest, 5000);
        let place = receiver.buffer.as_ptr();
        assert!(receiver.buffer.capacity() >= stream.len() && receiver.buffer.capacity() < stream.len() + limits::RECEIVE_BUFFER);
        while !rest.is_empty() {
            feed(&mut receiver, &mut rest, usize::MAX);
        }
        let frame = receiver.next_frame().unwrap().unwrap();
        assert_eq!(frame.payload.as_ptr(), place.wrapping_add(stream.len() - payload.len()));
    }

    #[test]
    fn a_frame_over_the_bound_costs_no_memory() {
        let mut receiver = Receiver::new(1000);
        receiver.room().extend_from_slice(&frame(1, &[0; 2000])[..100]);
        assert!(matches!(receiver.next_frame(), Err(FrameError::TooLong { .. })));
        assert!(receiver.room().capacity() <= 2 * limits::RECEIVE_BUFFER);
    }

    #[test]
    fn a_damaged_header_is_noticed() {
        let mut bytes = frame(1, b"payload");
        bytes[20] ^= 1;
        let mut receiver = Receiver::new(1000);
        receiver.room().extend_from_slice(&bytes);
        assert!(matches!(receiver.next_frame(), Err(FrameError::HeaderCrc { .. })));
    }
}
