//! Developer commands (`cargo xtask`). Dependency-free, so that a fresh clone builds them within seconds.

mod attack;
mod background;
mod bench;
mod cluster;
mod compile;
mod demo;
mod kills;
mod minilm;
mod process;
mod setup;
mod stress;
mod suite;
mod test;
mod tidy;

use std::process::ExitCode;

const HELP: &str = "\
Developer commands of Quorate.

  cargo xtask up [--once] [--fresh] [--model DIR] [--help]
                          build both binaries and run the demonstration: a whole cluster on this machine
  cargo xtask test        set up what the tests need and run them all
  cargo xtask test --stress ROUNDS
                          run the tests ROUNDS times on a machine that is kept busy
  cargo xtask kills [ROUNDS] [SEED]
                          run the demonstration while its processes are killed
  cargo xtask attack listeners
                          fill every listener of a cluster from one address while a client from another is
                          served
  cargo xtask tidy        check the rules of the codebase (also part of `test`); --report prints its figures,
                          --tighten moves the ratchets to them
  cargo xtask bench NAME [--quick] [--check]
                          measure one area beside its peers; `--list` names them, and `structured` holds the
                          real schemas in QUORATE_DATA to their instances
  cargo xtask train-tiny  train the small language model that the repository ships
  cargo xtask minilm      fetch all-MiniLM-L6-v2 into target/models, checked by digest
";

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let command = arguments.next().unwrap_or_default();
    let rest: Vec<String> = arguments.collect();
    let result = match command.as_str() {
        "up" => demo::up(&rest),
        "test" => test::run(&rest),
        "kills" => kills::run(&rest),
        "attack" => attack::run(&rest),
        "tidy" => tidy::command(&rest),
        // `test --stress` starts this command to keep a core busy.
        "burn" => {
            stress::burn();
            Ok(())
        }
        "bench" => bench::run(&rest),
        "train-tiny" => bench::train_tiny(),
        "minilm" => minilm::directory().map(|path| println!("{}", path.display())),
        "help" | "--help" | "-h" | "" => {
            print!("{HELP}");
            Ok(())
        }
        other => Err(format!("`{other}` is not a command\n\n{HELP}")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}
