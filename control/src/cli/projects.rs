//! `quorate project`: what each project may hold, holds and held; `quorate circle propose-projects`.

use super::Environment;
use super::output::table;
use super::proposals::{ProposerArguments, reason_or};
use crate::session::Session;
use anyhow::{Context as _, Result};
use clap::{Args, Subcommand};
use protocol::governance::Change;
use protocol::project::{ProjectList, ProjectTree, ProjectView, ROOT_PROJECT};
use protocol::usage_text::{format_quota, format_rate};
use std::path::PathBuf;

#[derive(Debug, Subcommand)]
pub(crate) enum ProjectCommand {
    /// List the projects with their quotas, what they hold and borrow, and their shares
    List(ProjectListArguments),
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  quorate project list
  quorate project list -o json

The average is by the voted half-life. The share is the sum of what a project holds and of its average, of
the resource of which it takes most. Beyond quotas, turns go to the lowest share by weight.")]
pub(crate) struct ProjectListArguments {}

#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  quorate circle propose-projects projects.toml

The file has the whole tree, which replaces the present one:

  half_life_seconds = 604800   # usage of a week ago counts half
  own_weight = 1               # of jobs without a project, beside the projects

  [[projects]]
  name = \"research\"
  weight = 3
  quota = { cpu_millicores = 64000, memory = \"512 GiB\", gpus = 16 }    # given back by borrowers
  borrow = { cpu_millicores = 32000, memory = \"256 GiB\", gpus = 8 }    # beyond it; without a line, no limit

  [[projects]]
  name = \"vision\"
  parent = \"research\"          # whose quota contains this one
  quota = { cpu_millicores = 16000, memory = \"128 GiB\", gpus = 4 }")]
pub(crate) struct ProposeProjectsArguments {
    /// File with the tree of projects, in TOML
    file: PathBuf,
    /// Reason shown to the voters
    #[arg(long, default_value = "")]
    reason: String,
    #[command(flatten)]
    proposer: ProposerArguments,
}

pub(crate) async fn run(command: &ProjectCommand, environment: &Environment) -> Result<()> {
    match command {
        ProjectCommand::List(ProjectListArguments {}) => list(environment).await,
    }
}

pub(crate) async fn propose(arguments: ProposeProjectsArguments, environment: &Environment) -> Result<()> {
    let path = &arguments.file;
    let text = std::fs::read_to_string(path).with_context(|| format!("read `{}`", path.display()))?;
    let tree = ProjectTree::from_toml(&text)?;
    let session = Session::open(&environment.context()?).await?;
    let reason = reason_or(arguments.reason, || "other projects".into());
    let change = Change::SetProjects(Box::new(tree));
    arguments.proposer.propose(environment, &session, change, reason).await?;
    Ok(())
}

async fn list(environment: &Environment) -> Result<()> {
    let list: ProjectList = environment.context()?.client()?.get("/v1/projects").await?;
    environment.output().print(&list, shown);
    Ok(())
}

/// Returns the table of projects.
fn shown(list: &ProjectList) -> String {
    let row = |view: &ProjectView| {
        let ProjectView { name, parent, weight, share_millionths, placed, waiting, .. } = view;
        let is_root = view.quota.is_none();
        let none = || "-".to_string();
        let parent = parent.as_ref().map_or_else(|| ROOT_PROJECT.into(), ToString::to_string);
        let unlimited = || if is_root { none() } else { "no limit".into() };
        vec![
            name.to_string(),
            if is_root { none() } else { parent },
            weight.to_string(),
            view.quota.as_ref().map_or_else(none, format_quota),
            view.borrow.as_ref().map_or_else(unlimited, format_quota),
            format_rate(&view.held),
            format_rate(&view.borrowed),
            format_rate(&view.average),
            format!("{}.{} %", share_millionths / 10_000, share_millionths / 1_000 % 10),
            placed.to_string(),
            waiting.to_string(),
        ]
    };
    let head = [
        "project",
        "parent",
        "weight",
        "quota",
        "may borrow",
        "holds",
        "borrows",
        "average",
        "share",
        "placed",
        "waiting",
    ];
    table(&head, list.items.iter().map(row).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::Millis;
    use protocol::project::ProjectQuota;
    use protocol::usage::UsageRate;

    fn view(name: &str, quota: Option<ProjectQuota>) -> ProjectView {
        ProjectView {
            name: name.parse().expect("a name"),
            parent: None,
            weight: 3,
            quota,
            borrow: None,
            held: UsageRate { gpu_millis: 4250, cpu_millicores: 16_000, memory_mib: 131_072 },
            borrowed: UsageRate { gpu_millis: 250, cpu_millicores: 0, memory_mib: 0 },
            average: UsageRate { gpu_millis: 0, cpu_millicores: 8000, memory_mib: 0 },
            share_millionths: 531_250,
            placed: 2,
            waiting: 7,
        }
    }

    #[test]
    fn the_table_shows_quota_and_what_is_held_beyond_it() {
        let quota = ProjectQuota { cpu_millicores: 16_000, memory_bytes: 128 << 30, gpus: 4 };
        let items = vec![view("default", None), view("research", Some(quota))];
        let (at, offered) = (Millis(1), UsageRate::default());
        let text = shown(&ProjectList { at, half_life_seconds: 3600, offered, items });
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("PROJECT") && lines[0].contains("MAY BORROW"), "{text}");
        let cells = |line: &str| -> Vec<String> {
            line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).map(str::to_string).collect()
        };
        let held = ["4.250 GPU 16 cores 128 GiB", "0.250 GPU", "8 cores", "53.1 %", "2", "7"];
        assert_eq!(cells(lines[1]), [&["default", "-", "3", "-", "-"][..], &held].concat(), "{text}");
        let research = ["research", "default", "3", "4 GPU 16 cores 128 GiB", "no limit"];
        assert_eq!(cells(lines[2]), [&research[..], &held].concat(), "{text}");
    }

    /// The file that the help shows is the one that is read.
    #[test]
    fn the_file_of_the_help_is_a_sound_tree() {
        use clap::CommandFactory as _;
        let mut command = crate::cli::Cli::command();
        let circle = command.find_subcommand_mut("circle").expect("a command");
        let propose = circle.find_subcommand_mut("propose-projects").expect("a command");
        let help = propose.get_after_help().expect("a help").to_string();
        let file = help.split_once("present one:\n").expect("a file").1;
        let tree = ProjectTree::from_toml(file).expect("a sound tree");
        assert_eq!((tree.half_life_seconds, tree.own_weight, tree.projects.len()), (604_800, 1, 2));
        assert_eq!(tree.projects[0].borrow.map(|borrow| borrow.gpus), Some(8));
    }
}
