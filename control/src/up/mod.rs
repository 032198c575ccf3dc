//! `quorate up`: a whole cluster on this machine.

/// placeholder
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  quorate up")]
pub struct UpArguments {}

pub(crate) async fn run(_: UpArguments) -> anyhow::Result<()> {
    Ok(())
}
