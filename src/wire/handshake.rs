//! The first frame of each direction: who speaks, and which version both speak from here on.

use super::decode::{WireError, refusal_of};
use super::encode::refusal_offset;
use super::{frame, generated as g, verified};
use crate::request::{Code, Refusal};

/// Oldest protocol version that this build speaks.
pub const VERSION_MIN: u16 = 1;
/// Newest protocol version that this build speaks.
pub const VERSION_MAX: u16 = 1;

/// What a client says first.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hello {
    /// Oldest version that it speaks.
    pub version_min: u16,
    /// Newest version that it speaks.
    pub version_max: u16,
    /// The name that its user gave it, for logs and metrics; may be empty.
    pub client_id: String,
    /// Library and version, for logs.
    pub software: String,
}

/// What a broker answers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HelloReply {
    /// The version that both speak from here on.
    pub version: u16,
    /// The cluster's UUID.
    pub cluster: [u8; 16],
    /// The node's id.
    pub node: u32,
    /// The shard that serves the connection.
    pub shard: u32,
    /// Longest frame that it takes, bytes.
    pub max_frame: u32,
    /// Most requests that it reads ahead of its answers on one connection.
    pub max_in_flight: u32,
    /// Software and version, for logs.
    pub software: String,
}

impl Hello {
    /// The newest version that both sides speak.
    ///
    /// # Errors
    /// There is none: a refusal to send back.
    pub fn choose_version(&self) -> Result<u16, Refusal> {
        let (low, high) = (self.version_min.max(VERSION_MIN), self.version_max.min(VERSION_MAX));
        if low <= high {
            return Ok(high);
        }
        Err(Refusal::new(
            Code::UnsupportedVersion,
            format!(
                "the broker speaks versions {VERSION_MIN} to {VERSION_MAX} of the native protocol, the client {} to {}",
                self.version_min, self.version_max
            ),
        ))
    }
}

/// Appends the whole frame of a hello (without the magic).
pub fn encode_hello(hello: &Hello, out: &mut Vec<u8>) {
    let mut b = flatbuffers::FlatBufferBuilder::new();
    let client_id = b.create_string(&hello.client_id);
    let software = b.create_string(&hello.software);
    let args = g::HelloArgs {
        version_min: hello.version_min,
        version_max: hello.version_max,
        client_id: Some(client_id),
        software: Some(software),
    };
    let root = g::Hello::create(&mut b, &args);
    b.finish_minimal(root);
    frame::write(b.finished_data(), 0, out);
}

/// Reads a hello's header.
///
/// # Errors
/// The header does not verify.
pub fn decode_hello(header: &[u8]) -> Result<Hello, WireError> {
    let hello = verified::<g::Hello>(header).map_err(|cause| WireError::header("Hello", None, &cause))?;
    Ok(Hello {
        version_min: hello.version_min(),
        version_max: hello.version_max(),
        client_id: hello.client_id().into(),
        software: hello.software().into(),
    })
}

/// Appends the whole frame of the answer; where it is a refusal, the broker closes the connection after it.
pub fn encode_hello_reply(reply: &Result<HelloReply, Refusal>, out: &mut Vec<u8>) {
    let mut b = flatbuffers::FlatBufferBuilder::new();
    let software = b.create_string(reply.as_ref().map_or("", |r| &r.software));
    let refusal = reply.as_ref().err().map(|r| refusal_offset(&mut b, r));
    let cluster = g::Uuid(reply.as_ref().map_or([0; 16], |r| r.cluster));
    let mut args = g::HelloReplyArgs { cluster: Some(&cluster), software: Some(software), refusal, ..Default::default() };
    if let Ok(reply) = reply {
        args.version = reply.version;
        args.node = reply.node;
        args.shard = reply.shard;
        args.max_frame = reply.max_frame;
        args.max_in_flight = reply.max_in_flight;
    }
    let root = g::HelloReply::create(&mut b, &args);
    b.finish_minimal(root);
    frame::write(b.finished_data(), 0, out);
}

/// Reads the header of the answer.
///
/// # Errors
/// The header does not verify.
pub fn decode_hello_reply(header: &[u8]) -> Result<Result<HelloReply, Refusal>, WireError> {
    let reply = verified::<g::HelloReply>(header).map_err(|cause| WireError::header("HelloReply", None, &cause))?;
    if let Some(refusal) = reply.refusal() {
        return Ok(Err(refusal_of(refusal)));
    }
    Ok(Ok(HelloReply {
        version: reply.version(),
        cluster: reply.cluster().0,
        node: reply.node(),
        shard: reply.shard(),
        max_frame: reply.max_frame(),
        max_in_flight: reply.max_in_flight(),
        software: reply.software().into(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(frame: &[u8]) -> &[u8] {
        let prefix = frame::peek(frame, 10_000).unwrap().unwrap();
        assert_eq!(prefix.total_len(), frame.len());
        prefix.check_header(&frame[prefix.header_range()]).unwrap();
        &frame[prefix.header_range()]
    }

    #[test]
    fn both_tables_round_trip() {
        let hello = Hello { version_min: 1, version_max: 3, client_id: "me".into(), software: "corelane 0.1".into() };
        let mut out = vec![];
        encode_hello(&hello, &mut out);
        assert_eq!(decode_hello(header(&out)).unwrap(), hello);
        assert_eq!(hello.choose_version(), Ok(1));

        let reply =
            HelloReply { version: 1, cluster: [9; 16], node: 3, shard: 2, max_frame: 77, max_in_flight: 5, software: "corelane".into() };
        for reply in [Ok(reply), Err(Refusal::new(Code::UnsupportedVersion, "no"))] {
            out.clear();
            encode_hello_reply(&reply, &mut out);
            assert_eq!(decode_hello_reply(header(&out)).unwrap(), reply);
        }
    }

    #[test]
    fn no_common_version_is_a_refusal_that_names_both_ranges() {
        for (version_min, version_max) in [(2, 9), (0, 0), (9, 2)] {
            let hello = Hello { version_min, version_max, client_id: String::new(), software: String::new() };
            let refusal = hello.choose_version().unwrap_err();
            assert_eq!(refusal.code, Code::UnsupportedVersion);
            assert!(refusal.message.contains("1 to 1") && refusal.message.contains(&format!("{version_min} to {version_max}")));
        }
    }

    #[test]
    fn a_header_of_another_kind_or_cut_does_not_panic() {
        let mut out = vec![];
        encode_hello(&Hello { version_min: 1, version_max: 1, client_id: "x".into(), software: "y".into() }, &mut out);
        let header = header(&out);
        for cut in 0..header.len() {
            let _ = decode_hello(&header[..cut]);
            let _ = decode_hello_reply(&header[..cut]);
        }
        assert!(decode_hello(&[]).is_err());
        assert!(decode_hello(&[0xff; 64]).is_err());
    }
}
