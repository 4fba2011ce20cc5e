//! The check of a batch whose bytes are in several places.

use crate::batch::{BatchHeader, HEADER_LEN};
use crate::checksum::Crc32c;
use crate::log::journal::LargeReference;

/// Checks a batch that comes in pieces against its header and CRC.
#[derive(Debug)]
pub(crate) struct BatchCheck {
    crc: Crc32c,
    seen: usize,
    head: [u8; HEADER_LEN],
}

impl BatchCheck {
    pub(crate) fn new() -> BatchCheck {
        BatchCheck { crc: Crc32c::new(), seen: 0, head: [0; HEADER_LEN] }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        let head = HEADER_LEN.saturating_sub(self.seen).min(bytes.len());
        self.head[self.seen.min(HEADER_LEN)..][..head].copy_from_slice(&bytes[..head]);
        let skip = crate::batch::CRC_START.saturating_sub(self.seen).min(bytes.len());
        self.crc.update(&bytes[skip..]);
        self.seen += bytes.len();
    }

    pub(crate) fn finish(self, reference: &LargeReference) -> Result<(), String> {
        if self.head != reference.header {
            return Err("the batch's header is not the one in the journal".into());
        }
        let header = BatchHeader::parse(&self.head).map_err(|error| error.to_string())?;
        if header.total_len() != self.seen {
            return Err(format!("a batch of {} bytes in {} bytes", header.total_len(), self.seen));
        }
        header.check_crc(self.crc.finish()).map_err(|error| error.to_string())
    }
}
