//! The blobs that consumers put into joins and get from syncs: `ConsumerProtocolSubscription` and `ConsumerProtocolAssignment`, versions 0 to 3.
//!
//! Layouts are those of Kafka's schemas of these names. New versions only add fields at the end, so a newer blob is read as version 3 and what
//! follows is left alone (the rule of the schemas); everything else is strict.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::fields::{FieldError, Reader, Writer};

/// Protocol type of consumers.
pub const PROTOCOL_TYPE: &str = "consumer";

/// Partitions by topic.
pub type TopicPartitions = BTreeMap<String, BTreeSet<i32>>;

/// Newest version that is known.
const VERSION: i16 = 3;
/// Versions from which on there are these fields (KIP-429, KIP-792, KIP-881).
const OWNED_SINCE: i16 = 1;
const GENERATION_SINCE: i16 = 2;
const RACK_SINCE: i16 = 3;

/// What a consumer wants and has.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Subscription {
    /// Topics it wants to read.
    pub topics: Vec<String>,
    /// Of its assignor.
    pub user_data: Option<Bytes>,
    /// Partitions it holds while it joins (a cooperative consumer).
    pub owned: TopicPartitions,
    /// Generation in which it got them; `None` where it does not say.
    pub generation: Option<i32>,
    /// Where it stands.
    pub rack: Option<String>,
}

/// What a consumer is to read.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Assignment {
    /// The partitions.
    pub partitions: TopicPartitions,
    /// Of the assignor.
    pub user_data: Option<Bytes>,
}

impl Subscription {
    /// As the newest version.
    pub fn encode(&self) -> Bytes {
        let mut blob = Writer::versioned(VERSION);
        blob.count(self.topics.len());
        self.topics.iter().for_each(|topic| blob.string(topic));
        blob.nullable_bytes(self.user_data.as_deref());
        put_partitions(&mut blob, &self.owned);
        blob.i32(self.generation.unwrap_or(-1));
        blob.nullable_string(self.rack.as_deref());
        blob.finish()
    }

    /// From a member's metadata.
    ///
    /// # Errors
    /// [`FieldError`] for bytes that are no subscription.
    pub fn decode(blob: &[u8]) -> Result<Subscription, FieldError> {
        let mut reader = Reader::new(blob);
        let version = version(&mut reader)?;
        let topics = topic_names(&mut reader)?;
        let user_data = reader.nullable_bytes("user data")?;
        let owned = if version >= OWNED_SINCE { partitions(&mut reader)? } else { TopicPartitions::new() };
        let generation =
            if version >= GENERATION_SINCE { Some(reader.i32("generation")?) } else { generation_of_old(user_data.as_deref()) };
        let rack = if version >= RACK_SINCE { reader.nullable_string("rack")?.map(String::from) } else { None };
        Ok(Subscription { topics, user_data, owned, generation: generation.filter(|generation| *generation >= 0), rack })
    }
}

impl Assignment {
    /// As the newest version. Versions of assignments differ in their number only, so consumers of every version read it.
    pub fn encode(&self) -> Bytes {
        let mut blob = Writer::versioned(VERSION);
        put_partitions(&mut blob, &self.partitions);
        blob.nullable_bytes(self.user_data.as_deref());
        blob.finish()
    }

    /// From what a leader gave. No bytes at all are no partitions: a leader need not mention a member.
    ///
    /// # Errors
    /// [`FieldError`] for bytes that are no assignment.
    pub fn decode(blob: &[u8]) -> Result<Assignment, FieldError> {
        if blob.is_empty() {
            return Ok(Assignment::default());
        }
        let mut reader = Reader::new(blob);
        version(&mut reader)?;
        Ok(Assignment { partitions: partitions(&mut reader)?, user_data: reader.nullable_bytes("user data")? })
    }
}

/// Topics of a subscription, without the rest of it: these fields are the same in every version.
///
/// # Errors
/// [`FieldError`] for bytes that are no subscription.
pub fn topics(blob: &[u8]) -> Result<Vec<String>, FieldError> {
    let mut reader = Reader::new(blob);
    version(&mut reader)?;
    topic_names(&mut reader)
}

/// Whether a member held something when it joined that its assignment takes away. Such a member joins again as soon as it has let go, and the partitions
/// are nobody's until it does.
pub fn gives_up(subscription: &[u8], assignment: &[u8]) -> bool {
    let (Ok(subscription), Ok(assignment)) = (Subscription::decode(subscription), Assignment::decode(assignment)) else { return false };
    let is_kept =
        |topic: &String, partitions: &BTreeSet<i32>| assignment.partitions.get(topic).is_some_and(|given| partitions.is_subset(given));
    !subscription.owned.iter().all(|(topic, partitions)| partitions.is_empty() || is_kept(topic, partitions))
}

fn version(reader: &mut Reader<'_>) -> Result<i16, FieldError> {
    let version = reader.i16("version")?;
    if version < 0 {
        return Err(FieldError::Length { field: "version", length: i32::from(version) });
    }
    Ok(version)
}

fn topic_names(reader: &mut Reader<'_>) -> Result<Vec<String>, FieldError> {
    let count = reader.count(2, "topics")?;
    (0..count).map(|_| reader.string("topic").map(String::from)).collect()
}

fn partitions(reader: &mut Reader<'_>) -> Result<TopicPartitions, FieldError> {
    let mut topics = TopicPartitions::new();
    for _ in 0..reader.count(6, "topics with partitions")? {
        let topic = reader.string("topic")?;
        let count = reader.count(4, "partitions")?;
        let partitions = (0..count).map(|_| reader.i32("partition")).collect::<Result<BTreeSet<i32>, _>>()?;
        topics.entry(topic.into()).or_default().extend(partitions);
    }
    Ok(topics)
}

fn put_partitions(blob: &mut Writer, topics: &TopicPartitions) {
    blob.count(topics.len());
    for (topic, partitions) in topics {
        blob.string(topic);
        blob.count(partitions.len());
        partitions.iter().for_each(|partition| blob.i32(*partition));
    }
}

/// Java's cooperative-sticky assignor of versions 0 and 1 had the generation alone in its user data.
fn generation_of_old(user_data: Option<&[u8]>) -> Option<i32> {
    user_data.and_then(|bytes| bytes.try_into().ok()).map(i32::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partitions_of(list: &[(&str, &[i32])]) -> TopicPartitions {
        list.iter().map(|(topic, partitions)| (topic.to_string(), partitions.iter().copied().collect())).collect()
    }

    /// Laid out by hand after ConsumerProtocolSubscription.json.
    #[test]
    fn a_subscription_has_kafkas_bytes() {
        let subscription = Subscription {
            topics: vec!["a".into(), "bc".into()],
            user_data: None,
            owned: partitions_of(&[("a", &[0, 5])]),
            generation: Some(9),
            rack: Some("r".into()),
        };
        let expected: [&[u8]; 6] = [
            b"\x00\x03\x00\x00\x00\x02\x00\x01a\x00\x02bc",
            b"\xff\xff\xff\xff",
            b"\x00\x00\x00\x01\x00\x01a\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x05",
            b"\x00\x00\x00\x09",
            b"\x00\x01r",
            b"",
        ];
        let blob = subscription.encode();
        assert_eq!(&blob[..], expected.concat());
        assert_eq!(Subscription::decode(&blob), Ok(subscription.clone()));
        // A version to come: more fields at the end.
        let newer = [b"\x00\x07", &blob[2..], b"more"].concat();
        assert_eq!(Subscription::decode(&newer), Ok(subscription));
    }

    #[test]
    fn older_subscriptions_are_read() {
        let v0 = b"\x00\x00\x00\x00\x00\x01\x00\x01a\x00\x00\x00\x00";
        let read = Subscription::decode(v0).unwrap();
        assert_eq!((read.topics, read.user_data, read.generation), (vec!["a".to_string()], Some(Bytes::new()), None));
        let v1 =
            b"\x00\x01\x00\x00\x00\x01\x00\x01a\x00\x00\x00\x04\x00\x00\x00\x06\x00\x00\x00\x01\x00\x01a\x00\x00\x00\x01\x00\x00\x00\x02";
        let read = Subscription::decode(v1).unwrap();
        assert_eq!((read.owned, read.generation), (partitions_of(&[("a", &[2])]), Some(6)));
    }

    /// Laid out by hand after ConsumerProtocolAssignment.json.
    #[test]
    fn an_assignment_has_kafkas_bytes() {
        let assignment = Assignment { partitions: partitions_of(&[("a", &[1])]), user_data: None };
        let blob = assignment.encode();
        assert_eq!(&blob[..], b"\x00\x03\x00\x00\x00\x01\x00\x01a\x00\x00\x00\x01\x00\x00\x00\x01\xff\xff\xff\xff");
        assert_eq!(Assignment::decode(&blob), Ok(assignment));
        assert_eq!(Assignment::decode(b""), Ok(Assignment::default()));
    }

    #[test]
    fn every_cut_is_an_error_and_nothing_panics() {
        let subscription = Subscription {
            topics: vec!["a".into()],
            user_data: Some(Bytes::from_static(b"u")),
            owned: partitions_of(&[("a", &[1])]),
            generation: Some(1),
            rack: None,
        };
        let blob = subscription.encode();
        for cut in 0..blob.len() {
            assert!(Subscription::decode(&blob[..cut]).is_err());
        }
        let mut bytes = blob.to_vec();
        for at in 0..bytes.len() {
            let was = bytes[at];
            for byte in 0..=u8::MAX {
                bytes[at] = byte;
                let _ = (Subscription::decode(&bytes), Assignment::decode(&bytes), topics(&bytes));
            }
            bytes[at] = was;
        }
    }
}
