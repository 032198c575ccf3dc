//! `quorate context`: shows, creates and selects the context file of a user.
//!
//! A new context is made from a circle's signed genesis, whose digest it pins.

use super::Environment;
use crate::context::{Context, VARIABLE, own_path};
use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};
use host::files;
use protocol::governance::SignedGenesis;
use std::path::{Path, PathBuf};

#[derive(Debug, Subcommand)]
pub(crate) enum ContextCommand {
    /// Show which cluster, token and member are in use
    #[command(after_help = "Example:\n  quorate context show")]
    Show,
    /// Create a context from a circle's genesis
    #[command(after_help = "\
Example:
  quorate context new lab.json --genesis genesis.json --token-file token --member-key alice.key --node node")]
    New(NewContext),
    /// Make this context file the default
    #[command(after_help = "Example:\n  quorate context use .quorate/demo/context.json")]
    Use {
        /// Context file
        file: PathBuf,
    },
}

#[derive(Debug, Args)]
pub(crate) struct NewContext {
    /// Context file to write
    file: PathBuf,
    /// Signed genesis of the circle; its digest is pinned
    #[arg(long, value_name = "FILE")]
    genesis: PathBuf,
    /// File with the access token
    #[arg(long, value_name = "FILE")]
    token_file: PathBuf,
    /// Key file of the member, if the user is one
    #[arg(long, value_name = "FILE")]
    member_key: Option<PathBuf>,
    /// State directory of a node on this machine, through which models are imported
    #[arg(long, value_name = "DIR")]
    node: Option<PathBuf>,
    /// Authority that signed the replicas' API certificates, PEM [default: the system's authorities]
    #[arg(long, value_name = "FILE")]
    certificate_authority: Option<PathBuf>,
}

pub(crate) fn run(command: ContextCommand, environment: &Environment) -> Result<()> {
    match command {
        ContextCommand::Show => show(environment),
        ContextCommand::New(arguments) => create(arguments),
        ContextCommand::Use { file } => select(&file),
    }
}

fn show(environment: &Environment) -> Result<()> {
    let context = environment.context()?;
    environment.output().print(&context, |context| {
        let member = context.member_key_file.as_ref().map(|file| file.display().to_string());
        format!(
            "{}  circle {}\ncontrol  {}\ngateway  {}\ntoken    {}\nmember   {}",
            context.name,
            context.circle.short(),
            context.control.join(" "),
            context.gateway.as_deref().unwrap_or("-"),
            context.token_file.display(),
            member.as_deref().unwrap_or("-"),
        )
    });
    Ok(())
}

fn create(arguments: NewContext) -> Result<()> {
    let signed: SignedGenesis = super::circle::read_json(&arguments.genesis)?;
    let state = human_chain::CircleState::found(&signed, None)
        .with_context(|| format!("`{}`", arguments.genesis.display()))?;
    let files = [
        Some(&arguments.token_file),
        arguments.member_key.as_ref(),
        arguments.certificate_authority.as_ref(),
    ];
    if let Some(missing) = files.into_iter().flatten().find(|file| !file.is_file()) {
        bail!("`{}` is not a file", missing.display());
    }
    let endpoints = signed.genesis.nodes.iter().filter_map(|node| node.gateway.as_ref());
    let context = Context {
        name: signed.genesis.name.clone(),
        circle: state.id(),
        control: signed.genesis.control.iter().map(|replica| replica.api.clone()).collect(),
        gateway: endpoints.map(|gateway| gateway.api.clone()).next(),
        token_file: absolute(arguments.token_file),
        member_key_file: arguments.member_key.map(absolute),
        node_directory: arguments.node.map(absolute),
        certificate_authority_file: arguments.certificate_authority.map(absolute),
    };
    write(&context, &arguments.file)?;
    println!("context {} for circle {} ({})", context.name, context.circle, arguments.file.display());
    println!("next: quorate context use {}", arguments.file.display());
    println!("or, for this shell only: export {VARIABLE}={}", absolute(arguments.file).display());
    Ok(())
}

fn select(file: &Path) -> Result<()> {
    let mut context = Context::load(Some(file))?;
    context.token_file = absolute(context.token_file);
    context.member_key_file = context.member_key_file.map(absolute);
    context.node_directory = context.node_directory.map(absolute);
    context.certificate_authority_file = context.certificate_authority_file.map(absolute);
    let path = own_path();
    write(&context, &path)?;
    println!("using {} ({})", context.name, path.display());
    if let Some(other) = std::env::var_os(VARIABLE) {
        let other = PathBuf::from(other);
        eprintln!(
            "note: {VARIABLE} is set to `{}` and takes precedence; to use this context: unset {VARIABLE}",
            other.display()
        );
    }
    Ok(())
}

fn write(context: &Context, path: &Path) -> Result<()> {
    let text = serde_json::to_string_pretty(context)?;
    files::write_atomically(path, text.as_bytes(), 0o644)
        .with_context(|| format!("write `{}`", path.display()))
}

fn absolute(path: PathBuf) -> PathBuf {
    std::path::absolute(&path).unwrap_or(path)
}
