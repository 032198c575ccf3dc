//! The command line: argument definitions and dispatch.
//!
//! Every command has an example, every list a JSON form, and every failure a stable error code.

mod access;
mod artifacts;
mod circle;
mod comments;
mod console;
mod context;
mod daemons;
mod datasets;
mod deploy;
mod failure;
mod halts;
#[cfg(test)]
mod hostile;
mod inbox;
mod job_data;
mod job_events;
mod job_ids;
mod job_runs;
mod jobs;
mod logs;
mod members;
mod models;
mod nodes;
mod output;
mod passkeys;
mod projects;
mod proposals;
mod quantize;
mod services;
mod sharing;
mod status;
mod template;
mod usage;
mod verdict;
mod words;

pub use output::Output;
pub use template::service_template;

use crate::context::Context;
use crate::print;
use anyhow::Result;
use clap::{Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

/// An AI cloud that a circle of people governs together.
#[derive(Debug, Parser)]
#[command(
    name = "quorate",
    version,
    arg_required_else_help = true,
    after_help = "\
Examples:
  quorate up                               a whole cluster on this machine
  quorate status                           problems, each with the next command
  quorate deploy chat.toml --wait          propose, wait for the votes, wait for the first replica
  quorate review                           proposals that wait for your vote
  quorate halt service chat --reason TEXT  stop it now; lifting it takes a vote
  quorate explain quorum-not-reached       the meaning of an error code

Nothing runs that the circle did not sign. Everything the circle signed keeps running."
)]
pub struct Cli {
    /// Context, by name or by file: cluster, token and member [default: $QUORATE_CONTEXT, then the one that
    /// `quorate context use` chose]
    #[arg(long, global = true, value_name = "NAME|FILE")]
    context: Option<PathBuf>,
    /// Output format
    #[arg(short = 'o', long = "output", global = true, value_enum, default_value = "text")]
    output: Output,
    #[command(subcommand)]
    command: TopLevelCommand,
}

#[derive(Debug, Subcommand)]
enum TopLevelCommand {
    /// Run a whole cluster on this machine: real processes, real TLS, embedded storage
    Up(crate::up::UpArguments),
    /// Prepare or run a control replica
    #[command(subcommand)]
    Control(daemons::ControlCommand),
    /// Prepare or run a node's agent
    #[command(subcommand)]
    Agent(daemons::AgentCommand),
    /// Found a circle, show it, export its history
    #[command(subcommand)]
    Circle(circle::CircleCommand),
    /// Make, rotate, suspend and recover the keys of members, and their passkeys
    #[command(subcommand)]
    Member(members::MemberCommand),
    /// Propose a change, or draft it for a member to propose
    Propose(proposals::ProposeArguments),
    /// List the proposals, drafts and vetoable changes that wait for you, or announce them as they come
    Inbox(inbox::InboxArguments),
    /// Show the proposals that wait for votes, or one proposal exactly as its signature covers it
    Review(proposals::ReviewArguments),
    /// Sign a proposal, after reading it and typing the first two of its words
    #[command(after_help = "\
Examples:
  quorate approve 7f3a --key member-a.key
  quorate approve 7f3a --key member-a.key --words 'badge pelican'    for scripts")]
    Approve(proposals::VoteArguments),
    /// Vote against a proposal
    #[command(after_help = "\
Example:
  quorate reject 7f3a --key member-a.key --reason 'it takes all GPUs of node-2'")]
    Reject(proposals::VoteArguments),
    /// Ask a question about a proposal; every member reads it, and it counts for nothing
    Ask(comments::AskArguments),
    /// Answer a question about a proposal
    Answer(comments::AnswerArguments),
    /// Withdraw a proposal of your own, or a draft
    Withdraw(proposals::WithdrawArguments),
    /// Stop a service, a node, a region or the whole circle at once, by your own signature
    #[command(subcommand)]
    Halt(halts::HaltCommand),
    /// Propose to lift halts: what they stopped may run again
    Lift(halts::LiftArguments),
    /// List the halts that stand, and those that the circle lifted
    #[command(after_help = "Example:\n  quorate halts")]
    Halts,
    /// List, admit and remove nodes
    #[command(subcommand)]
    Node(nodes::NodeCommand),
    /// Import, list, verify and repair models, and collect garbage in their stores
    #[command(subcommand)]
    Model(models::ModelCommand),
    /// Import, build, list and verify artifacts: root file systems of programs
    #[command(subcommand)]
    Artifact(artifacts::ArtifactCommand),
    /// Import, list and verify datasets: directories of files that jobs read
    #[command(subcommand)]
    Dataset(datasets::DatasetCommand),
    /// Submit, list, follow, cancel and retry jobs; check what their manifests let them run
    #[command(subcommand)]
    Job(jobs::JobCommand),
    /// Print a commented manifest that is valid as it is
    #[command(subcommand)]
    New(template::NewCommand),
    /// Propose to run the service of a manifest
    Deploy(deploy::DeployArguments),
    /// Read and vote in a browser, over a history verified on this machine
    Console(console::ConsoleArguments),
    /// List and show services
    #[command(subcommand)]
    Service(services::ServiceCommand),
    /// Change the number of replicas within the approved envelope; needs no vote
    Scale(services::ScaleArguments),
    /// Return a service to the approval before, if its certificate names it
    Rollback(services::RollbackArguments),
    /// Propose to shut a service down gracefully
    Retire(services::RetireArguments),
    /// Show the log lines of a service's workers
    Logs(logs::LogsArguments),
    /// Show the problems of the cluster, each with the next command
    #[command(after_help = "\
Example:
  quorate status

Exit status: 0 all is well, 1 something is wrong, 2 the quorum is lost or the state is unknown")]
    Status,
    /// Explain why a service is placed, waits or was rejected
    Why(status::WhyArguments),
    /// Verify a history or a certificate offline
    Verify(circle::VerifyArguments),
    /// Explain an error code
    Explain(status::ExplainArguments),
    /// List, add, choose and remove contexts: which cluster, token and member commands use
    #[command(subcommand)]
    Context(context::ContextCommand),
    /// Issue, list and revoke inference keys of applications
    #[command(subcommand)]
    Key(access::KeyCommand),
    /// Issue, list and revoke access tokens of people
    #[command(subcommand)]
    Token(access::TokenCommand),
    /// List projects: quotas, what each holds and borrows, and its share
    #[command(subcommand)]
    Project(projects::ProjectCommand),
    /// Show, export and verify metered usage: what services and jobs held, and what it cost
    #[command(subcommand)]
    Usage(usage::UsageCommand),
    /// List the latest audit events: action, actor and time
    Events(status::EventsArguments),
}

/// Exit status of `quorate status` when the state of the cluster cannot be determined.
const STATE_UNKNOWN: u8 = 2;

/// Global options, passed to every command.
pub(crate) struct Environment {
    context: Option<PathBuf>,
    output: Output,
}

impl Environment {
    pub(crate) fn context(&self) -> Result<Context> {
        Context::load(self.context.as_deref())
    }

    pub(crate) fn output(&self) -> Output {
        self.output
    }
}

/// Runs the command. Errors are printed here, once, with their code and a remedy.
#[must_use]
pub fn run(cli: Cli) -> ExitCode {
    let environment = Environment { context: cli.context, output: cli.output };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let failed = if matches!(cli.command, TopLevelCommand::Status) {
        ExitCode::from(STATE_UNKNOWN)
    } else {
        ExitCode::FAILURE
    };
    let outcome = match runtime {
        Ok(runtime) => runtime.block_on(dispatch(cli.command, &environment)),
        Err(error) => Err(error.into()),
    };
    let status = outcome.unwrap_or_else(|error| {
        failure::print(&error, environment.output);
        failed
    });
    let Some(reason) = print::failure() else { return status };
    print::err(format_args!("error: the command has ended, and its output could not be written: {reason}"));
    ExitCode::FAILURE
}

async fn dispatch(command: TopLevelCommand, environment: &Environment) -> Result<ExitCode> {
    match command {
        TopLevelCommand::Up(arguments) => crate::up::run(arguments).await,
        TopLevelCommand::Control(command) => daemons::control(command).await,
        TopLevelCommand::Agent(command) => daemons::agent(command).await,
        TopLevelCommand::Circle(command) => circle::run(command, environment).await,
        TopLevelCommand::Member(command) => members::run(command, environment).await,
        TopLevelCommand::Propose(arguments) => proposals::propose(arguments, environment).await,
        TopLevelCommand::Inbox(arguments) => inbox::run(arguments, environment).await,
        TopLevelCommand::Review(arguments) => proposals::review(arguments, environment).await,
        TopLevelCommand::Approve(arguments) => proposals::approve(arguments, environment).await,
        TopLevelCommand::Reject(arguments) => proposals::reject(arguments, environment).await,
        TopLevelCommand::Ask(arguments) => comments::ask(arguments, environment).await,
        TopLevelCommand::Answer(arguments) => comments::answer(arguments, environment).await,
        TopLevelCommand::Withdraw(arguments) => proposals::withdraw(arguments, environment).await,
        TopLevelCommand::Halt(command) => halts::halt(command, environment).await,
        TopLevelCommand::Lift(arguments) => halts::lift_halts(arguments, environment).await,
        TopLevelCommand::Halts => halts::halts(environment).await,
        TopLevelCommand::Node(command) => nodes::run(command, environment).await,
        TopLevelCommand::Model(command) => models::run(command, environment).await,
        TopLevelCommand::Artifact(command) => artifacts::run(command, environment).await,
        TopLevelCommand::Dataset(command) => datasets::run(command, environment).await,
        TopLevelCommand::Job(command) => jobs::run(command, environment).await,
        TopLevelCommand::New(command) => template::new(command, environment).await,
        TopLevelCommand::Deploy(arguments) => deploy::deploy(arguments, environment).await,
        TopLevelCommand::Console(arguments) => console::run(arguments, environment).await,
        TopLevelCommand::Service(command) => services::run(command, environment).await,
        TopLevelCommand::Scale(arguments) => services::scale(arguments, environment).await,
        TopLevelCommand::Rollback(arguments) => services::rollback(arguments, environment).await,
        TopLevelCommand::Retire(arguments) => services::retire(arguments, environment).await,
        TopLevelCommand::Logs(arguments) => logs::logs(arguments, environment).await,
        TopLevelCommand::Status => return status::status(environment).await,
        TopLevelCommand::Why(arguments) => status::why(arguments, environment).await,
        TopLevelCommand::Verify(arguments) => circle::verify(arguments, environment).await,
        TopLevelCommand::Explain(arguments) => status::explain(&arguments, environment),
        TopLevelCommand::Context(command) => context::run(command, environment),
        TopLevelCommand::Token(command) => access::run_token(command, environment).await,
        TopLevelCommand::Key(command) => access::run_key(command, environment).await,
        TopLevelCommand::Project(command) => projects::run(&command, environment).await,
        TopLevelCommand::Usage(command) => usage::run(command, environment).await,
        TopLevelCommand::Events(arguments) => status::events(arguments, environment).await,
    }?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    /// Returns the commands in a remedy: each is at the end of its step.
    fn commands(remedy: &str) -> impl Iterator<Item = &str> {
        remedy.split("; and ").filter_map(|step| step.find("quorate ").map(|at| &step[at..]))
    }

    /// Parses every remedy that `status` and `why` print in the scheduler's golden scripts.
    #[test]
    fn every_command_that_status_and_why_suggest_works_as_printed() {
        let stories = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../scheduler/tests/golden");
        let mut tried = std::collections::BTreeSet::new();
        for story in std::fs::read_dir(stories).expect("the stories") {
            let text = std::fs::read_to_string(story.expect("a story").path()).expect("text");
            let finding = |line: &str| {
                line.strip_prefix("    - ")?.split_once(" -> ").map(|(_, next)| next.to_string())
            };
            let remedy = |line: &str| line.strip_prefix("    to help: ").map(str::to_string);
            for next in text.lines().filter_map(|line| finding(line).or_else(|| remedy(line))) {
                for command in commands(&next) {
                    let parsed = Cli::try_parse_from(command.split_whitespace());
                    let help = parsed.as_ref().err().map(clap::Error::kind);
                    assert!(
                        parsed.is_ok() || help == Some(clap::error::ErrorKind::DisplayHelp),
                        "`{command}`: {}",
                        parsed.err().map(|error| error.to_string()).unwrap_or_default()
                    );
                    tried.insert(command.split_whitespace().take(3).collect::<Vec<_>>().join(" "));
                }
            }
        }
        for expected in
            ["quorate node admit", "quorate node remove", "quorate model import", "quorate deploy"]
        {
            assert!(tried.iter().any(|command| command.starts_with(expected)), "{expected} in {tried:?}");
        }
    }

    /// Returns whether these words name a command down to its last level; options and arguments may follow.
    fn is_command(command: &clap::Command, words: &[&str]) -> bool {
        match words {
            [] => !command.has_subcommands() || !command.is_subcommand_required_set(),
            [word, ..] if word.starts_with('-') || !command.has_subcommands() => true,
            [word, rest @ ..] => command.find_subcommand(word).is_some_and(|sub| is_command(sub, rest)),
        }
    }

    #[test]
    fn every_command_that_an_error_page_names_exists() {
        let cli = Cli::command();
        assert!(is_command(&cli, &["model", "verify", "minilm"]) && is_command(&cli, &["--version"]));
        assert!(!is_command(&cli, &["tokens"]) && !is_command(&cli, &["context"]));
        let mut named = 0;
        for code in protocol::error_code::ALL {
            let page = crate::explain::page(code.as_str()).expect("a page");
            for command in page.split('`').filter_map(|text| text.strip_prefix("quorate ")) {
                let words: Vec<&str> = command.split_whitespace().collect();
                assert!(is_command(&cli, &words), "{code}: `quorate {command}`");
                named += 1;
            }
        }
        assert!(named > 60, "{named} commands");
    }

    #[test]
    fn every_command_shows_an_example_of_itself() {
        fn check(command: &clap::Command, path: &str) {
            for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
                let path = format!("{path} {}", sub.get_name());
                if sub.has_subcommands() {
                    check(sub, &path);
                } else {
                    let help = sub.clone().render_long_help().to_string();
                    let example = help.split("Example").nth(1).unwrap_or_default();
                    assert!(example.contains(&path), "{path} shows no example of itself: {example}");
                }
            }
        }
        check(&Cli::command(), "quorate");
    }
}
