//! The running hash of a partition: what the batches' own CRCs leave out (base offset, length, epoch, magic) and their order.

/// Bytes of a batch that the running hash covers: its header.
pub const HASHED_LEN: usize = 61;

/// The running hash after one more batch: CRC-64/NVME of the hash so far and the batch's first [`HASHED_LEN`] bytes as stored.
/// It is 0 at offset 0 of a partition.
pub fn running_hash(before: u64, header: &[u8; HASHED_LEN]) -> u64 {
    let mut input = [0; 8 + HASHED_LEN];
    input[..8].copy_from_slice(&before.to_le_bytes());
    input[8..].copy_from_slice(header);
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, &input)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depends_on_order_and_on_every_byte() {
        let a = [1; HASHED_LEN];
        let b = [2; HASHED_LEN];
        assert_ne!(running_hash(running_hash(0, &a), &b), running_hash(running_hash(0, &b), &a));
        for at in 0..HASHED_LEN {
            let mut flipped = a;
            flipped[at] ^= 1;
            assert_ne!(running_hash(7, &a), running_hash(7, &flipped));
        }
    }

    /// The definition, bit by bit.
    fn crc64_nvme(bytes: &[u8]) -> u64 {
        !bytes.iter().fold(!0u64, |crc, byte| {
            (0..8).fold(crc ^ u64::from(*byte), |crc, _| if crc & 1 == 1 { (crc >> 1) ^ 0x9a6c_9329_ac4b_c9b5 } else { crc >> 1 })
        })
    }

    #[test]
    fn the_value_is_part_of_the_format() {
        assert_eq!(crc64_nvme(b"123456789"), 0xae8b_1486_0a79_9888);
        let header: [u8; HASHED_LEN] = std::array::from_fn(|at| (at * 7) as u8);
        let input: Vec<u8> = 0x0123_4567_89ab_cdef_u64.to_le_bytes().into_iter().chain(header).collect();
        assert_eq!(running_hash(0x0123_4567_89ab_cdef, &header), crc64_nvme(&input));
    }
}
