//! What people type. Every command has an example, every list a JSON form, every failure its code.

mod circle;
mod context;
mod daemons;
mod failure;
mod keys;
mod models;
mod nodes;
mod output;
mod proposals;
mod services;
mod status;
mod verdict;

pub use circle::simple_policy;
pub use nodes::admit;
pub use output::Output;
pub use services::service_template;

use crate::context::Context;
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
  quorate status                           what is wrong, and the next command
  quorate deploy chat.toml --wait          propose, wait for the votes, wait for the first replica
  quorate review                           what waits for your vote
  quorate explain quorum-not-reached       what an error code means

Nothing runs that the circle did not sign. Everything the circle signed keeps running."
)]
pub struct Cli {
    /// Context file: which cluster, which token, which member [default: $QUORATE_CONTEXT, then ~/.config/quorate/context.json]
    #[arg(long, global = true, value_name = "FILE")]
    context: Option<PathBuf>,
    /// How to print
    #[arg(short = 'o', long = "output", global = true, value_enum, default_value = "text")]
    output: Output,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a whole cluster on this machine: real processes, real TLS, embedded storage
    Up(crate::up::UpArguments),
    /// Run or prepare a control replica
    #[command(subcommand)]
    Control(daemons::ControlCommand),
    /// Run or prepare a node's agent
    #[command(subcommand)]
    Agent(daemons::AgentCommand),
    /// Found a circle, show it, export its history
    #[command(subcommand)]
    Circle(circle::CircleCommand),
    /// Put a change to the vote
    Propose(proposals::ProposeArguments),
    /// Show what waits for votes, or one proposal exactly as its signature covers it
    Review(proposals::ReviewArguments),
    /// Sign a proposal
    #[command(after_help = "Example:\n  quorate approve 7f3a --key member-a.key")]
    Approve(proposals::VoteArguments),
    /// Vote against a proposal
    #[command(after_help = "Example:\n  quorate reject 7f3a --key member-a.key")]
    Reject(proposals::VoteArguments),
    /// List, admit and remove nodes
    #[command(subcommand)]
    Node(nodes::NodeCommand),
    /// Import, list, check and repair models, and sweep their stores
    #[command(subcommand)]
    Model(models::ModelCommand),
    /// Print a commented manifest that is valid as it is
    #[command(subcommand)]
    New(services::NewCommand),
    /// Propose to run a manifest
    Deploy(services::DeployArguments),
    /// List and show services
    #[command(subcommand)]
    Service(services::ServiceCommand),
    /// Change the number of replicas inside the approved envelope; needs no vote
    Scale(services::ScaleArguments),
    /// Propose to end a service in order
    Retire(services::RetireArguments),
    /// Show what a service's workers write
    Logs(services::LogsArguments),
    /// What is wrong, and the next command
    #[command(after_help = "\
Example:
  quorate status

Exit status: 0 all is well, 1 something is wrong, 2 the quorum is lost or there is no way to tell")]
    Status,
    /// Why something is placed, waits or was refused
    Why(status::WhyArguments),
    /// Check a history or a certificate offline
    Verify(circle::VerifyArguments),
    /// Explain an error code
    Explain(status::ExplainArguments),
    /// Where am I: show or choose the context
    #[command(subcommand)]
    Context(context::ContextCommand),
    /// Create, list and revoke inference keys for applications
    #[command(subcommand)]
    Key(keys::KeyCommand),
    /// List what was done last, by whom and when
    Events(status::EventsArguments),
}

/// Exit status of `quorate status` where the state of the cluster cannot be had.
const NO_WAY_TO_TELL: u8 = 2;

/// What every command gets.
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

/// Runs the command; errors are printed once, here, with their code and what to do.
#[must_use]
pub fn run(cli: Cli) -> ExitCode {
    let environment = Environment { context: cli.context, output: cli.output };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let failed = if matches!(cli.command, Command::Status) {
        ExitCode::from(NO_WAY_TO_TELL)
    } else {
        ExitCode::FAILURE
    };
    let outcome = match runtime {
        Ok(runtime) => runtime.block_on(dispatch(cli.command, &environment)),
        Err(error) => Err(error.into()),
    };
    outcome.unwrap_or_else(|error| {
        failure::print(&error, environment.output);
        failed
    })
}

async fn dispatch(command: Command, environment: &Environment) -> Result<ExitCode> {
    match command {
        Command::Up(arguments) => crate::up::run(arguments).await,
        Command::Control(command) => daemons::control(command).await,
        Command::Agent(command) => daemons::agent(command).await,
        Command::Circle(command) => circle::run(command, environment).await,
        Command::Propose(arguments) => proposals::propose(arguments, environment).await,
        Command::Review(arguments) => proposals::review(arguments, environment).await,
        Command::Approve(arguments) => proposals::approve(arguments, environment).await,
        Command::Reject(arguments) => proposals::reject(arguments, environment).await,
        Command::Node(command) => nodes::run(command, environment).await,
        Command::Model(command) => models::run(command, environment).await,
        Command::New(command) => services::new(command, environment).await,
        Command::Deploy(arguments) => services::deploy(arguments, environment).await,
        Command::Service(command) => services::run(command, environment).await,
        Command::Scale(arguments) => services::scale(arguments, environment).await,
        Command::Retire(arguments) => services::retire(arguments, environment).await,
        Command::Logs(arguments) => services::logs(arguments, environment).await,
        Command::Status => return status::status(environment).await,
        Command::Why(arguments) => status::why(arguments, environment).await,
        Command::Verify(arguments) => circle::verify(arguments, environment).await,
        Command::Explain(arguments) => status::explain(&arguments, environment),
        Command::Context(command) => context::run(command, environment),
        Command::Key(command) => keys::run(command, environment).await,
        Command::Events(arguments) => status::events(arguments, environment).await,
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

    /// Commands in a remedy: each stands at the end of its step.
    fn commands(remedy: &str) -> impl Iterator<Item = &str> {
        remedy.split("; and ").filter_map(|step| step.find("quorate ").map(|at| &step[at..]))
    }

    /// Every remedy that `status` and `why` print in the scheduler's operator stories.
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
