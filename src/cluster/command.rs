//! The commands of the catalogue and their encoding (`schemas/catalogue.fbs`).
//!
//! Decoding goes through FlatBuffers' verifier only. A kind that this version does not know is an error, never skipped:
//! a state machine that leaves out a command is another state machine.

use flatbuffers::{FlatBufferBuilder, VerifierOptions, WIPOffset};

use super::generated::corelane::catalogue as fb;
use crate::limits;
use crate::types::TopicId;

/// A change of the catalogue.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Command {
    /// A new topic.
    CreateTopic {
        /// Its identity, chosen by the proposer at random.
        id: TopicId,
        /// Its name.
        name: String,
        /// Number of partitions.
        partitions: u32,
        /// Replicas of each partition, in nodes.
        replication_factor: u16,
        /// Settings as (name, value).
        config: Vec<(String, String)>,
    },
    /// A topic goes.
    DeleteTopic {
        /// Which.
        id: TopicId,
    },
    /// A topic changes.
    AlterTopic {
        /// Which.
        id: TopicId,
        /// The new number of partitions, more than before; `None` leaves it.
        partitions: Option<u32>,
        /// Settings to set, or (`None`) to give back to the default.
        config: Vec<(String, Option<String>)>,
    },
    /// The node starts: the leader epoch of every partition rises by one.
    NodeStarted,
    /// A block of producer ids is given out.
    AllocateProducerIds {
        /// How many.
        count: u32,
    },
    /// Nothing; its presence in the log proves that everything before it was synced.
    DurableMark,
}

/// Bytes that are not a command.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CommandError {
    /// The FlatBuffer does not verify.
    #[error("the command does not verify: {0}")]
    Invalid(String),
    /// A kind of a newer version.
    #[error("command kind {0} is not known to this version; start a newer one")]
    UnknownKind(u8),
    /// Longer than a command can be.
    #[error("a command has at most {most} bytes, this one has {actual}", most = limits::MAX_COMMAND)]
    TooLong {
        /// Its length, bytes.
        actual: usize,
    },
}

impl Command {
    /// The encoded command; at most [`limits::MAX_COMMAND`] bytes, else an error.
    pub fn encode(&self) -> Result<Vec<u8>, CommandError> {
        let mut builder = FlatBufferBuilder::new();
        let (body_type, body) = self.build_body(&mut builder);
        let command = fb::Command::create(&mut builder, &fb::CommandArgs { body_type, body: Some(body) });
        builder.finish_minimal(command);
        let bytes = builder.finished_data();
        if bytes.len() > limits::MAX_COMMAND {
            return Err(CommandError::TooLong { actual: bytes.len() });
        }
        Ok(bytes.to_vec())
    }

    /// The command of these bytes.
    pub fn decode(bytes: &[u8]) -> Result<Command, CommandError> {
        if bytes.len() > limits::MAX_COMMAND {
            return Err(CommandError::TooLong { actual: bytes.len() });
        }
        // Whatever `encode` lets through must verify: a table takes at least 8 bytes, vtables may be counted again and again.
        let (max_tables, max_apparent_size) = (limits::MAX_COMMAND / 8, 16 * limits::MAX_COMMAND);
        let options = VerifierOptions { max_depth: 8, max_tables, max_apparent_size, ..Default::default() };
        let command = fb::root_as_command_with_opts(&options, bytes).map_err(|e| CommandError::Invalid(e.to_string()))?;
        read_body(&command)
    }

    fn build_body(&self, builder: &mut FlatBufferBuilder<'_>) -> (fb::Body, WIPOffset<flatbuffers::UnionWIPOffset>) {
        match self {
            Command::CreateTopic { id, name, partitions, replication_factor, config } => {
                let settings = build_settings(builder, config.iter().map(|(n, v)| (n.as_str(), Some(v.as_str()))));
                let args = fb::CreateTopicArgs {
                    id: Some(&fb::Uuid::new(&id.0)),
                    name: Some(builder.create_string(name)),
                    partitions: *partitions,
                    replication_factor: *replication_factor,
                    settings: Some(settings),
                };
                (fb::Body::CreateTopic, fb::CreateTopic::create(builder, &args).as_union_value())
            }
            Command::DeleteTopic { id } => {
                let args = fb::DeleteTopicArgs { id: Some(&fb::Uuid::new(&id.0)) };
                (fb::Body::DeleteTopic, fb::DeleteTopic::create(builder, &args).as_union_value())
            }
            Command::AlterTopic { id, partitions, config } => {
                let settings = build_settings(builder, config.iter().map(|(n, v)| (n.as_str(), v.as_deref())));
                let args = fb::AlterTopicArgs { id: Some(&fb::Uuid::new(&id.0)), partitions: *partitions, settings: Some(settings) };
                (fb::Body::AlterTopic, fb::AlterTopic::create(builder, &args).as_union_value())
            }
            Command::NodeStarted => (fb::Body::NodeStarted, fb::NodeStarted::create(builder, &fb::NodeStartedArgs {}).as_union_value()),
            Command::AllocateProducerIds { count } => {
                let args = fb::AllocateProducerIdsArgs { count: *count };
                (fb::Body::AllocateProducerIds, fb::AllocateProducerIds::create(builder, &args).as_union_value())
            }
            Command::DurableMark => (fb::Body::DurableMark, fb::DurableMark::create(builder, &fb::DurableMarkArgs {}).as_union_value()),
        }
    }
}

type Settings<'a> = flatbuffers::Vector<'a, flatbuffers::ForwardsUOffset<fb::Setting<'a>>>;

fn build_settings<'a, 'b>(
    builder: &mut FlatBufferBuilder<'b>,
    pairs: impl Iterator<Item = (&'a str, Option<&'a str>)>,
) -> WIPOffset<flatbuffers::Vector<'b, flatbuffers::ForwardsUOffset<fb::Setting<'b>>>> {
    let mut settings = Vec::new();
    for (name, value) in pairs {
        let name = Some(builder.create_string(name));
        let value = value.map(|v| builder.create_string(v));
        settings.push(fb::Setting::create(builder, &fb::SettingArgs { name, value }));
    }
    builder.create_vector(&settings)
}

fn read_body(command: &fb::Command<'_>) -> Result<Command, CommandError> {
    let kind = command.body_type();
    let absent = || CommandError::UnknownKind(kind.0);
    Ok(match kind {
        fb::Body::CreateTopic => {
            let body = command.body_as_create_topic().ok_or_else(absent)?;
            Command::CreateTopic {
                id: TopicId(body.id().bytes().into()),
                name: body.name().into(),
                partitions: body.partitions(),
                replication_factor: body.replication_factor(),
                config: read_values(body.settings())?,
            }
        }
        fb::Body::DeleteTopic => {
            let body = command.body_as_delete_topic().ok_or_else(absent)?;
            Command::DeleteTopic { id: TopicId(body.id().bytes().into()) }
        }
        fb::Body::AlterTopic => {
            let body = command.body_as_alter_topic().ok_or_else(absent)?;
            Command::AlterTopic {
                id: TopicId(body.id().bytes().into()),
                partitions: body.partitions(),
                config: read_changes(body.settings()),
            }
        }
        fb::Body::NodeStarted => Command::NodeStarted,
        fb::Body::AllocateProducerIds => {
            let body = command.body_as_allocate_producer_ids().ok_or_else(absent)?;
            Command::AllocateProducerIds { count: body.count() }
        }
        fb::Body::DurableMark => Command::DurableMark,
        other => return Err(CommandError::UnknownKind(other.0)),
    })
}

fn read_changes(settings: Option<Settings<'_>>) -> Vec<(String, Option<String>)> {
    let pair = |setting: fb::Setting<'_>| (setting.name().to_owned(), setting.value().map(str::to_owned));
    settings.into_iter().flatten().map(pair).collect()
}

fn read_values(settings: Option<Settings<'_>>) -> Result<Vec<(String, String)>, CommandError> {
    let pair = |(name, value): (String, Option<String>)| match value {
        Some(value) => Ok((name, value)),
        None => Err(CommandError::Invalid(format!("setting {name} of a new topic has no value"))),
    };
    read_changes(settings).into_iter().map(pair).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn one_of_each() -> Vec<Command> {
        let id = TopicId([7; 16]);
        vec![
            Command::NodeStarted,
            Command::CreateTopic {
                id,
                name: "orders.eu-1_x".into(),
                partitions: 12,
                replication_factor: 1,
                config: vec![("retention.ms".into(), "1000".into()), ("durability".into(), "memory".into())],
            },
            Command::AlterTopic { id, partitions: Some(13), config: vec![("retention.ms".into(), None)] },
            Command::AlterTopic { id, partitions: None, config: vec![("segment.bytes".into(), Some("1048576".into()))] },
            Command::AllocateProducerIds { count: 1000 },
            Command::DeleteTopic { id },
            Command::DurableMark,
        ]
    }

    #[test]
    fn commands_round_trip() {
        for command in one_of_each() {
            assert_eq!(Command::decode(&command.encode().unwrap()).unwrap(), command);
        }
    }

    #[test]
    fn every_cut_and_every_flip_gives_an_error_or_a_command_but_no_panic() {
        for command in one_of_each() {
            let bytes = command.encode().unwrap();
            for length in 0..bytes.len() {
                let _ = Command::decode(&bytes[..length]);
            }
            for bit in 0..bytes.len() * 8 {
                let mut flipped = bytes.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                let _ = Command::decode(&flipped);
            }
        }
        assert!(Command::decode(&[]).is_err());
    }

    #[test]
    fn a_kind_of_a_newer_version_is_named() {
        let mut builder = FlatBufferBuilder::new();
        let body = fb::NodeStarted::create(&mut builder, &fb::NodeStartedArgs {}).as_union_value();
        let command = fb::Command::create(&mut builder, &fb::CommandArgs { body_type: fb::Body(77), body: Some(body) });
        builder.finish_minimal(command);
        assert_eq!(Command::decode(builder.finished_data()), Err(CommandError::UnknownKind(77)));
    }

    #[test]
    fn the_largest_commands_verify() {
        let config = vec![("s".to_owned(), None); 2000];
        let large = Command::AlterTopic { id: TopicId([1; 16]), partitions: None, config };
        let bytes = large.encode().unwrap();
        assert!(bytes.len() > limits::MAX_COMMAND / 2, "{}", bytes.len());
        assert_eq!(Command::decode(&bytes).unwrap(), large);
    }

    #[test]
    fn a_command_of_endless_length_is_refused() {
        let long = Command::AlterTopic { id: TopicId([1; 16]), partitions: None, config: vec![("x".repeat(limits::MAX_COMMAND), None)] };
        assert!(matches!(long.encode(), Err(CommandError::TooLong { .. })));
    }
}
