//! `quorate`: the binary of the control crate.

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    // The launcher re-executes this binary as the init of a sandbox. That path must stay single-threaded and
    // free of other state, so it is taken before any argument is parsed or thread started.
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() == Some("sandbox-init") {
        let status = sandbox::init::main(arguments);
        return ExitCode::from(u8::try_from(status).unwrap_or(1));
    }
    host::children::die_with_parent();
    let cli = control::cli::Cli::parse();
    control::cli::run(cli)
}
