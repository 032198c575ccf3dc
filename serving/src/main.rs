//! `quorate-serve`: the binary of the AI circuit. All of it is in the library, which is compiled once for it and the tests.

fn main() -> std::process::ExitCode {
    serving::cli::main()
}
