//! `quorate context`: lists, adds, chooses and removes the contexts of a user.
//!
//! A new context is made from a circle's signed genesis, whose digest it pins, or from the file of a cluster
//! such as `quorate up` writes.

use super::Environment;
use super::output::table;
use crate::context::{Context, ContextFolder, ContextName, VARIABLE};
use crate::print;
use crate::terminal::line;
use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};
use protocol::governance::SignedGenesis;
use serde::Serialize;
use std::path::PathBuf;

#[derive(Debug, Subcommand)]
pub(crate) enum ContextCommand {
    /// Show which cluster, token and member are in use
    #[command(after_help = "Example:\n  quorate context show")]
    Show,
    /// List the contexts; `*` marks the chosen one
    #[command(after_help = "Example:\n  quorate context list")]
    List,
    /// Add a context, from a circle's genesis or from a context file
    #[command(after_help = "\
Examples:
  quorate context add lab --genesis genesis.json --token-file token --member-key alice.key --node node
  quorate context add demo --file .quorate/demo/context.json")]
    Add(AddContext),
    /// Choose the context that commands use
    #[command(after_help = "\
Example:
  quorate context use lab

`--context` and $QUORATE_CONTEXT take precedence. A value of theirs with a slash or the ending `.json` is a
file; any other is the name of a context.")]
    Use {
        /// Name of the context
        name: ContextName,
    },
    /// Remove a context; keys and tokens stay where they are
    #[command(after_help = "Example:\n  quorate context remove lab")]
    Remove {
        /// Name of the context
        name: ContextName,
    },
}

#[derive(Debug, Args)]
pub(crate) struct AddContext {
    /// Name of the new context
    name: ContextName,
    /// Context file to copy, instead of a genesis
    #[arg(long, value_name = "FILE", required_unless_present = "genesis")]
    file: Option<PathBuf>,
    /// Signed genesis of the circle; its digest is pinned
    #[arg(long, value_name = "FILE", requires = "token_file", conflicts_with = "file")]
    genesis: Option<PathBuf>,
    /// File with the access token; a circle that begins has none yet
    #[arg(long, value_name = "FILE", requires = "genesis")]
    token_file: Option<PathBuf>,
    /// Key file of the member, if the user is one
    #[arg(long, value_name = "FILE", requires = "genesis")]
    member_key: Option<PathBuf>,
    /// State directory of a node on this machine, through which models are imported
    #[arg(long, value_name = "DIR", requires = "genesis")]
    node: Option<PathBuf>,
    /// Authority that signed the replicas' API certificates, PEM [default: the system's authorities]
    #[arg(long, value_name = "FILE", requires = "genesis")]
    certificate_authority: Option<PathBuf>,
}

pub(crate) fn run(command: ContextCommand, environment: &Environment) -> Result<()> {
    let folder = ContextFolder::of_user();
    match command {
        ContextCommand::Show => show(environment),
        ContextCommand::List => list(&folder, environment),
        ContextCommand::Add(arguments) => add(&folder, arguments),
        ContextCommand::Use { name } => select(&folder, &name),
        ContextCommand::Remove { name } => {
            folder.remove(&name)?;
            print::out(format_args!("removed context {name}; its keys and tokens are where they were"));
            Ok(())
        }
    }
}

fn show(environment: &Environment) -> Result<()> {
    let context = environment.context()?;
    environment.output().print(&context, |context| {
        let member = context.member_key_file.as_ref().map(|file| file.display().to_string());
        format!(
            "{}  circle {}\nfile     {}\ncontrol  {}\ngateway  {}\ntoken    {}\nmember   {}",
            context.name,
            context.circle.short(),
            context.file.display(),
            context.control.join(" "),
            context.gateway.as_deref().unwrap_or("-"),
            context.token_file.display(),
            member.as_deref().unwrap_or("-"),
        )
    });
    Ok(())
}

/// One context in the list.
#[derive(Debug, Serialize)]
struct ContextEntry {
    name: ContextName,
    chosen: bool,
    /// The context; none if its file is damaged.
    context: Option<Context>,
}

fn list(folder: &ContextFolder, environment: &Environment) -> Result<()> {
    let chosen = folder.chosen()?;
    let entry = |name: ContextName| ContextEntry {
        chosen: chosen.as_ref() == Some(&name),
        context: Context::read(&folder.path(&name)).ok(),
        name,
    };
    let entries: Vec<ContextEntry> = folder.names()?.into_iter().map(entry).collect();
    environment.output().print(&serde_json::json!({ "items": entries }), |_| contexts_table(&entries));
    Ok(())
}

fn contexts_table(entries: &[ContextEntry]) -> String {
    if entries.is_empty() {
        return "no context; `quorate context add` adds one".into();
    }
    let row = |entry: &ContextEntry| {
        let mark = if entry.chosen { "*" } else { "" };
        let (circle, control) = match &entry.context {
            Some(context) => (context.circle.short(), context.control.join(" ")),
            None => ("-".into(), "damaged: `quorate context remove` removes it".into()),
        };
        vec![mark.to_string(), entry.name.to_string(), circle, control]
    };
    table(&["", "context", "circle", "control"], entries.iter().map(row).collect())
}

fn add(folder: &ContextFolder, arguments: AddContext) -> Result<()> {
    let name = arguments.name.clone();
    let context = match (&arguments.file, &arguments.genesis, &arguments.token_file) {
        (Some(file), ..) => Context::read(file)?,
        (None, Some(genesis), Some(token)) => of_genesis(genesis.clone(), token.clone(), arguments)?,
        _ => bail!("give --file, or --genesis with --token-file"),
    };
    let (cluster, circle) = (context.name.clone(), context.circle);
    let token_file = context.token_file.clone();
    let path = folder.add(&name, context)?;
    print::out(format_args!("context {name} for {}, circle {circle} ({})", line(&cluster), path.display()));
    print::out(format_args!("next: quorate context use {name}"));
    print::out(format_args!("or, for this shell only: export {VARIABLE}={name}"));
    if !token_file.exists() {
        let file = token_file.display();
        print::out(format_args!("`{file}` does not exist yet: quorate token issue --help"));
    }
    Ok(())
}

fn of_genesis(genesis: PathBuf, token_file: PathBuf, arguments: AddContext) -> Result<Context> {
    let signed: SignedGenesis = super::circle::read_json(&genesis)?;
    let state =
        human_chain::CircleState::found(&signed, None).with_context(|| format!("`{}`", genesis.display()))?;
    let files = [arguments.member_key.as_ref(), arguments.certificate_authority.as_ref()];
    // A member issues the first token through this context.
    let token = Some(&token_file).filter(|file| file.exists());
    if let Some(other) = files.into_iter().chain([token]).flatten().find(|file| !file.is_file()) {
        bail!("`{}` is not a file", other.display());
    }
    let endpoints = signed.genesis.nodes.iter().filter_map(|node| node.gateway.as_ref());
    Ok(Context {
        name: signed.genesis.name.clone(),
        circle: state.id(),
        control: signed.genesis.control.iter().map(|replica| replica.api.clone()).collect(),
        gateway: endpoints.map(|gateway| gateway.api.clone()).next(),
        token_file,
        member_key_file: arguments.member_key,
        node_directory: arguments.node,
        certificate_authority_file: arguments.certificate_authority,
        file: genesis,
    })
}

fn select(folder: &ContextFolder, name: &ContextName) -> Result<()> {
    let context = folder.choose(name)?;
    print::out(format_args!("using {name}: {}, circle {}", line(&context.name), context.circle.short()));
    if let Some(other) = std::env::var_os(VARIABLE) {
        let other = PathBuf::from(other);
        print::err(format_args!(
            "note: {VARIABLE} is set to `{}` and takes precedence; to use this context: unset {VARIABLE}",
            other.display()
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::{CircleId, Digest};

    #[test]
    fn the_list_marks_the_chosen_context_and_names_a_damaged_one() {
        let context = Context {
            name: "lab".into(),
            circle: CircleId(Digest::of(b"circle")),
            control: vec!["https://10.0.0.1:7601".into()],
            gateway: None,
            token_file: "token".into(),
            member_key_file: None,
            node_directory: None,
            certificate_authority_file: None,
            file: PathBuf::new(),
        };
        let entry = |name: &str, chosen, context| ContextEntry {
            name: name.parse().expect("a name"),
            chosen,
            context,
        };
        assert!(contexts_table(&[]).starts_with("no context"));
        let text = contexts_table(&[entry("attic", false, None), entry("lab", true, Some(context.clone()))]);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[1].starts_with("   attic") && lines[1].contains("damaged"), "{text}");
        let expected = format!("*  lab      {}  https://10.0.0.1:7601", context.circle.short());
        assert_eq!(lines[2], expected);
    }
}
