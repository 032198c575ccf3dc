//! Error reporting of failed commands: the cause, its stable code, and a pointer to `quorate explain`.

use super::output::Output;
use crate::client::ClientError;
use crate::node::ModelFailure;
use consensus::StartError;
use gpu_agent::agent::AgentError;
use human_chain::ChainError;
use model_store::{ImportError, KeyError, ReadError, StoreError};
use protocol::ErrorCode;

/// Prints an error with all of its causes to standard error.
pub(super) fn print(error: &anyhow::Error, output: Output) {
    let problem = error.chain().find_map(|cause| match cause.downcast_ref::<ClientError>() {
        Some(ClientError::Refused(problem)) => Some(problem),
        _ => None,
    });
    let message = format!("{error:#}");
    match (output, problem) {
        (Output::Json, Some(problem)) => eprintln!("{}", serde_json::json!(problem)),
        (Output::Json, None) => {
            eprintln!("{}", serde_json::json!({ "code": code_of(error), "message": message }));
        }
        (Output::Text, Some(problem)) => {
            eprintln!("error: {} ({})", problem.message, problem.code);
            if let Some(place) = &problem.at {
                eprintln!("  at: {place}");
            }
            if let Some(remedy) = &problem.remedy {
                eprintln!("  do: {remedy}");
            }
            eprintln!("  more: quorate explain {}", problem.code);
        }
        (Output::Text, None) => {
            eprintln!("error: {message}");
            if let Some(code) = code_of(error) {
                eprintln!("  more: quorate explain {code}");
            }
        }
    }
}

/// Returns the code of an error: its type's own, or the one in its text, written as `context: code: message`.
fn code_of(error: &anyhow::Error) -> Option<ErrorCode> {
    let in_text = || format!("{error:#}").split(": ").find_map(ErrorCode::find);
    error.chain().find_map(code_of_type).or_else(in_text)
}

fn code_of_type(cause: &(dyn std::error::Error + 'static)) -> Option<ErrorCode> {
    let client = || cause.downcast_ref::<ClientError>().and_then(ClientError::code);
    let model = || cause.downcast_ref::<ModelFailure>().map(|failure| failure.code);
    let agent = cause.downcast_ref::<AgentError>().map(AgentError::code);
    let replica = || cause.downcast_ref::<StartError>().map(StartError::code);
    let chain = || cause.downcast_ref::<ChainError>().map(ChainError::code);
    let import = || cause.downcast_ref::<ImportError>().map(ImportError::code);
    let read = || cause.downcast_ref::<ReadError>().map(ReadError::code);
    let store = || cause.downcast_ref::<StoreError>().map(StoreError::code);
    let key = || cause.downcast_ref::<KeyError>().map(KeyError::code);
    let connection = || cause.downcast_ref::<overlay::Error>().map(overlay::Error::code);
    let above_storage = agent.or_else(replica).or_else(chain);
    let above_storage = above_storage.or_else(client).or_else(model);
    above_storage.or_else(import).or_else(read).or_else(store).or_else(key).or_else(connection)
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::{Context as _, anyhow};
    use protocol::error_code;

    #[test]
    fn a_code_is_found_in_a_type_or_in_the_text() {
        let typed = anyhow::Error::from(ChainError::KindNotBuilt("jobs")).context("deploy");
        assert_eq!(code_of(&typed), Some(error_code::KIND_NOT_BUILT));
        let text = Err::<(), _>(anyhow!("port-in-use: port 1 is taken")).context("start control-1");
        assert_eq!(code_of(&text.expect_err("it is one")), Some(error_code::PORT_IN_USE));
        assert_eq!(code_of(&anyhow!("no file `x`")), None);
        let nobody = anyhow::Error::from(ClientError::Unreachable("refused".into())).context("status");
        assert_eq!(code_of(&nobody), Some(error_code::CONTROL_UNAVAILABLE));
        let model = ModelFailure { code: error_code::SHARD_WRONG, message: "1 fault".into() };
        assert_eq!(code_of(&model.into()), Some(error_code::SHARD_WRONG));
    }
}
