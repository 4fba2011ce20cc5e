//! What every command shares that talks to a broker: where it is, and what its errors mean for the exit code.

use std::time::Duration;

use super::exit::{Exit, Failure};
use crate::client::{Client, ClientError, ProduceError, ProduceFailure};
use crate::request::Code;

/// Where the broker is.
#[derive(clap::Args)]
pub struct BrokerArgs {
    /// A broker; several with commas
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:9092")]
    pub broker: String,
}

impl BrokerArgs {
    /// Connects. Nothing is tried twice here: who types a command wants to know at once.
    pub async fn connect(&self) -> Result<Client, Failure> {
        let client = Client::builder(&self.broker).client_id("corelane").connect_timeout(CONNECT).retry_timeout(RETRY);
        Ok(client.connect().await?)
    }
}

const CONNECT: Duration = Duration::from_secs(5);
const RETRY: Duration = Duration::from_secs(15);

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Failure {
        let exit = match &error {
            ClientError::Connect { .. }
            | ClientError::Disconnected { .. }
            | ClientError::TimedOut { .. }
            | ClientError::Protocol { .. } => Exit::Unreachable,
            ClientError::Refused(_) | ClientError::Group { .. } => Exit::Refused,
            ClientError::Invalid(_) => Exit::Usage,
            ClientError::Batch(_) | ClientError::Closed => Exit::Failed,
        };
        Failure::new(exit, error.to_string())
    }
}

impl From<ProduceError> for Failure {
    fn from(error: ProduceError) -> Failure {
        let exit = match &error.cause {
            ProduceFailure::Client(cause) => Failure::from(cause.clone()).exit,
            ProduceFailure::Expired { last: Some(cause), .. } if Failure::from(cause.clone()).exit == Exit::Unreachable => {
                Exit::Unreachable
            }
            _ => Exit::Failed,
        };
        let code = if let ProduceFailure::Client(cause) = &error.cause { cause.code() } else { None };
        let unknown = code == Some(Code::UnknownTopicOrPartition);
        let advice = if unknown { format!("; `corelane topic create {}` makes one", error.topic) } else { String::new() };
        Failure::new(exit, format!("{error}{advice}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::Refusal;

    #[test]
    fn errors_have_their_exit_codes() {
        let connect = ClientError::Connect { address: "x:1".into(), cause: "refused".into() };
        let refused = ClientError::Refused(Refusal::new(Code::TopicExists, "topic a exists"));
        assert_eq!(Failure::from(connect.clone()).exit, Exit::Unreachable);
        assert_eq!(Failure::from(refused.clone()).exit, Exit::Refused);
        assert_eq!(Failure::from(ClientError::Invalid("no".into())).exit, Exit::Usage);
        let produce = |cause| Failure::from(ProduceError { topic: "a".into(), partition: None, cause }).exit;
        assert_eq!(produce(ProduceFailure::Client(refused)), Exit::Refused);
        assert_eq!(produce(ProduceFailure::Expired { timeout_ms: 1, last: Some(connect) }), Exit::Unreachable);
        assert_eq!(produce(ProduceFailure::Expired { timeout_ms: 1, last: None }), Exit::Failed);
        assert_eq!(produce(ProduceFailure::Unknown), Exit::Failed);
    }
}
