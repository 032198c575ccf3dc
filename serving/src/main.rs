//! `quorate-serve`: the binary of the AI circuit. All code is in the library, compiled once for binary and
//! tests.

fn main() -> std::process::ExitCode {
    serving::cli::main()
}
