//! Error reporting of failed commands: the cause, its stable code, and a pointer to `quorate explain`.

use super::output::Output;
use crate::client::ClientError;
use crate::print;
use crate::terminal;
use consensus::StartError;
use gpu_agent::agent::AgentError;
use human_chain::ChainError;
use model_store::{ImportError, KeyError, ReadError, StoreError};
use protocol::api::Problem;
use protocol::{ErrorCode, Refusal};

/// Prints an error with all of its causes to standard error.
pub(super) fn print(error: &anyhow::Error, output: Output) {
    match output {
        Output::Json => print::err(terminal::json(&json(error).to_string())),
        Output::Text => print::err(text(error)),
    }
}

fn json(error: &anyhow::Error) -> serde_json::Value {
    match problem_of(error) {
        Some(problem) => serde_json::json!(problem),
        None => serde_json::json!({ "code": code_of(error), "message": format!("{error:#}") }),
    }
}

fn text(error: &anyhow::Error) -> String {
    let more = |code: &str| format!("  more: quorate explain {code}");
    let Some(problem) = problem_of(error) else {
        let causes = terminal::lines(&format!("error: {error:#}"));
        let lines = [Some(causes), code_of(error).map(|code| more(code.as_str()))];
        return lines.into_iter().flatten().collect::<Vec<_>>().join("\n");
    };
    let lines = [
        Some(format!("error: {} ({})", terminal::line(&problem.message), terminal::line(&problem.code))),
        problem.at.as_ref().map(|place| format!("  at: {}", terminal::line(place))),
        problem.remedy.as_ref().map(|remedy| format!("  do: {}", terminal::line(remedy))),
        Some(more(&terminal::line(&problem.code))),
    ];
    lines.into_iter().flatten().collect::<Vec<_>>().join("\n")
}

/// Returns the problem document that the API sent, if the error is one.
fn problem_of(error: &anyhow::Error) -> Option<&Problem> {
    error.chain().find_map(|cause| match cause.downcast_ref::<ClientError>() {
        Some(ClientError::Refused(problem)) => Some(problem),
        _ => None,
    })
}

/// Returns the code of an error: that of the refusal it carries, or that of a cause with codes of its own.
pub(super) fn code_of(error: &anyhow::Error) -> Option<ErrorCode> {
    // A refusal may be the context of another error. Only `anyhow` finds it there, not the chain of causes.
    let refusal = error.downcast_ref::<Refusal>().map(|refusal| refusal.code);
    refusal.or_else(|| error.chain().find_map(code_of_type))
}

/// Returns whether an error says that no leader answered, and nothing about what a leader would answer.
pub(super) fn is_silence(code: ErrorCode) -> bool {
    use protocol::error_code::{CONTROL_UNAVAILABLE, NO_LEADER, NOT_LEADER, TIMED_OUT};
    [CONTROL_UNAVAILABLE, NO_LEADER, NOT_LEADER, TIMED_OUT].contains(&code)
}

fn code_of_type(cause: &(dyn std::error::Error + 'static)) -> Option<ErrorCode> {
    let client = || cause.downcast_ref::<ClientError>().and_then(ClientError::code);
    let agent = cause.downcast_ref::<AgentError>().map(AgentError::code);
    let replica = || cause.downcast_ref::<StartError>().map(StartError::code);
    let chain = || cause.downcast_ref::<ChainError>().map(ChainError::code);
    let import = || cause.downcast_ref::<ImportError>().map(ImportError::code);
    let read = || cause.downcast_ref::<ReadError>().map(ReadError::code);
    let store = || cause.downcast_ref::<StoreError>().map(StoreError::code);
    let key = || cause.downcast_ref::<KeyError>().map(KeyError::code);
    let connection = || cause.downcast_ref::<overlay::Error>().map(overlay::Error::code);
    let above_storage = agent.or_else(replica).or_else(chain).or_else(client);
    above_storage.or_else(import).or_else(read).or_else(store).or_else(key).or_else(connection)
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::{Context as _, anyhow};
    use protocol::error_code;

    fn port_in_use() -> Refusal {
        Refusal::new(error_code::PORT_IN_USE, "port 1 is taken")
    }

    #[test]
    fn the_code_of_a_refusal_is_found_as_the_cause_and_as_a_context() {
        let cause = anyhow::Error::from(port_in_use()).context("listen").context("start control-1");
        assert_eq!(code_of(&cause), Some(error_code::PORT_IN_USE));
        let context = anyhow!("permission denied").context(port_in_use()).context("start control-1");
        assert_eq!(code_of(&context), Some(error_code::PORT_IN_USE));
        let nested = anyhow!(cause).context("up");
        assert_eq!(code_of(&nested), Some(error_code::PORT_IN_USE));
    }

    #[test]
    fn the_code_of_an_error_type_is_used() {
        let chain = anyhow::Error::from(ChainError::KindNotBuilt("jobs")).context("deploy");
        assert_eq!(code_of(&chain), Some(error_code::KIND_NOT_BUILT));
        let unreachable = anyhow::Error::from(ClientError::Unreachable("refused".into())).context("status");
        assert_eq!(code_of(&unreachable), Some(error_code::CONTROL_UNAVAILABLE));
    }

    #[test]
    fn no_code_is_read_out_of_a_text() {
        assert_eq!(code_of(&anyhow!("no file `x`")), None);
        assert_eq!(code_of(&anyhow!("port-in-use: port 1 is taken").context("start control-1")), None);
    }

    #[test]
    fn a_refusal_is_printed_with_its_context_its_code_and_the_page_to_read() {
        let error = anyhow::Error::from(port_in_use()).context("start control-1");
        let expected = "\
error: start control-1: port-in-use: port 1 is taken
  more: quorate explain port-in-use";
        assert_eq!(text(&error), expected);
        let message = "start control-1: port-in-use: port 1 is taken";
        assert_eq!(json(&error), serde_json::json!({ "code": "port-in-use", "message": message }));
    }

    #[test]
    fn an_error_without_a_code_is_printed_without_a_page() {
        let error = Err::<(), _>(anyhow!("not found")).context("read `x`").expect_err("an error");
        assert_eq!(text(&error), "error: read `x`: not found");
        assert_eq!(json(&error), serde_json::json!({ "code": null, "message": "read `x`: not found" }));
    }

    #[test]
    fn a_problem_of_the_api_is_printed_as_it_was_sent() {
        let problem = |at: Option<&str>, remedy: Option<&str>| Problem {
            code: "newer-than-this-client".into(),
            message: "no GPU is free".into(),
            at: at.map(str::to_string),
            remedy: remedy.map(str::to_string),
        };
        let error = |problem: &Problem| {
            anyhow::Error::from(ClientError::Refused(problem.clone())).context("deploy chat")
        };
        let whole = problem(Some("resources.gpu_count"), Some("ask for fewer"));
        let expected = "\
error: no GPU is free (newer-than-this-client)
  at: resources.gpu_count
  do: ask for fewer
  more: quorate explain newer-than-this-client";
        assert_eq!(text(&error(&whole)), expected);
        assert_eq!(json(&error(&whole)), serde_json::json!(whole));
        assert_eq!(text(&error(&problem(None, None))).lines().count(), 2);
        let hostile = problem(Some("a\nerror: all is well"), Some("\u{1b}[2Jquorate up"));
        let shown = text(&error(&hostile));
        assert_eq!(shown.lines().count(), 4, "no line is added: {shown}");
        assert!(!shown.contains('\u{1b}'), "{shown}");
    }
}
