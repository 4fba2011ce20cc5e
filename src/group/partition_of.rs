//! Which partition of `__consumer_offsets` holds a group.

/// The partition of a group, of `partitions`: as Kafka's brokers compute it, so that tools that read the topic find a group where they look for it.
///
/// It is `(hash & 0x7fffffff) % partitions` with Java's `String.hashCode`, which runs over UTF-16 units. The number of partitions is fixed
/// when the topic is made; with another number groups would lose their positions.
///
/// # Panics
/// When `partitions` is 0.
pub fn partition_of(group: &str, partitions: u32) -> u32 {
    assert!(partitions > 0, "the topic has partitions");
    let hash = group.encode_utf16().fold(0_u32, |hash, unit| hash.wrapping_mul(31).wrapping_add(u32::from(unit)));
    (hash & 0x7fff_ffff) % partitions
}

#[cfg(test)]
mod tests {
    use super::partition_of;

    /// Values of `"...".hashCode()` as Java documents or prints them.
    #[test]
    fn hashes_are_javas() {
        let hash = |text: &str| partition_of(text, 0x8000_0000);
        assert_eq!(hash(""), 0);
        assert_eq!(hash("a"), 97);
        assert_eq!(hash("hello"), 99_162_322);
        assert_eq!(hash("Hello, World!"), 1_498_789_909);
        // The classic pair of equal hashes.
        assert_eq!(hash("Aa"), hash("BB"));
        // hashCode is i32::MIN here: `abs` would stay negative, the mask gives 0.
        assert_eq!(hash("polygenelubricants"), 0);
    }

    /// A character beyond the basic plane counts as its two surrogates.
    #[test]
    fn the_hash_runs_over_utf16() {
        let surrogates = (0xd83d_u32 * 31 + 0xde00) & 0x7fff_ffff;
        assert_eq!(partition_of("\u{1f600}", 50), surrogates % 50);
        assert_eq!(partition_of("ü", 50), 0xfc % 50);
    }
}
