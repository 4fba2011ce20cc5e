//! Records that can't be handled go to a topic of their own, named and described as Spring's `DeadLetterPublishingRecoverer` does.

use crate::client::error::ClientError;
use crate::client::{Client, ConsumerRecord, NewTopic, ProduceError, ProduceFailure, Producer, ProducerRecord};
use crate::request::Code;

/// The topic for records of a topic.
pub(super) fn topic_of(topic: &str) -> String {
    format!("{topic}.DLT")
}

/// Why a record is given up.
pub(super) struct Cause {
    pub message: String,
    /// The error's type, as Spring names the exception's class.
    pub kind: &'static str,
}

/// Sends the record with its key, value, headers and timestamp to the same partition of the dead-letter topic, which is made where it is missing. The headers
/// that are added say where it came from and why.
pub(super) async fn publish(
    client: &Client,
    producer: &Producer,
    group: &str,
    record: &ConsumerRecord,
    cause: &Cause,
) -> Result<(), ProduceError> {
    let topic = topic_of(&record.topic);
    let fault = |cause: ClientError| ProduceError { topic: topic.clone(), partition: None, cause: ProduceFailure::Client(cause) };
    let partitions = partitions(client, &topic, &record.topic).await.map_err(fault)?;
    let (partition, offset, timestamp) = (record.partition.to_be_bytes(), record.offset.to_be_bytes(), record.timestamp.to_be_bytes());
    // A header whose name is no text can't be sent by this client, nor by Java's.
    let own = record.headers().filter_map(|header| Some((header.name_str().ok()?, header.value)));
    let mut headers: Vec<(&str, Option<&[u8]>)> = own.collect();
    headers.extend([
        ("kafka_dlt-original-topic", Some(record.topic.as_bytes())),
        ("kafka_dlt-original-partition", Some(&partition[..])),
        ("kafka_dlt-original-offset", Some(&offset[..])),
        ("kafka_dlt-original-timestamp", Some(&timestamp[..])),
        ("kafka_dlt-original-consumer-group", Some(group.as_bytes())),
        ("kafka_dlt-exception-fqcn", Some(cause.kind.as_bytes())),
        ("kafka_dlt-exception-message", Some(cause.message.as_bytes())),
    ]);
    let mut letter = ProducerRecord::to(&topic).headers(&headers).timestamp(record.timestamp);
    if let Some(key) = &record.key {
        letter = letter.key(key);
    }
    if let Some(value) = &record.value {
        letter = letter.value(value);
    }
    if record.partition < partitions {
        letter = letter.partition(record.partition);
    }
    producer.send(letter).await.map(drop)
}

/// Number of partitions of the dead-letter topic.
async fn partitions(client: &Client, topic: &str, of: &str) -> Result<u32, ClientError> {
    if let Some(found) = client.brokers.cached_topic(topic) {
        return Ok(found.partitions.len() as u32);
    }
    let wanted = client.brokers.topic(of).await?.partitions.len() as u32;
    match client.admin().create_topic(NewTopic::new(topic).partitions(wanted)).await {
        Err(error) if error.code() != Some(Code::TopicExists) => return Err(error),
        _ => {}
    }
    Ok(client.brokers.topic(topic).await?.partitions.len() as u32)
}
