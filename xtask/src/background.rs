//! A command that runs beside others at the lowest priority; its output is kept for its end.

use crate::process::{command, target};
use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Stdio};

/// The running command. It is killed on drop.
pub(crate) struct Background {
    child: Child,
    output: PathBuf,
    text: String,
}

impl Background {
    /// Starts a program, with these variables; `name` is that of the file below the target directory which
    /// takes its output.
    pub(crate) fn start(name: &str, program: &[&str], variables: &[(&str, &str)]) -> Result<Self, String> {
        let text = program.join(" ");
        let output = target().join(format!("{name}.txt"));
        let file = File::create(&output).map_err(|error| format!("create {}: {error}", output.display()))?;
        let copy = file.try_clone().map_err(|error| format!("its output: {error}"))?;
        let mut nice = command("nice", &[&["-n", "19"], program].concat());
        nice.envs(variables.iter().copied()).stdin(Stdio::null()).stdout(file).stderr(copy);
        let child = nice.spawn().map_err(|error| format!("cannot run `{text}`: {error}"))?;
        Ok(Self { child, output, text })
    }

    /// Waits for the end; the error holds the whole output.
    pub(crate) fn finish(mut self) -> Result<(), String> {
        let status = self.child.wait().map_err(|error| format!("waiting for `{}`: {error}", self.text))?;
        if status.success() {
            return Ok(());
        }
        let said = std::fs::read_to_string(&self.output).unwrap_or_else(|error| error.to_string());
        Err(format!("{said}\n`{}` failed: {status}", self.text))
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        // A process that has exited needs no signal.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(name: &str, script: &str) -> Result<(), String> {
        Background::start(name, &["sh", "-c", script], &[("COLOUR", "blue")]).expect("it starts").finish()
    }

    #[test]
    fn a_failure_shows_the_output_and_a_success_nothing() {
        assert_eq!(shell("background-good", "echo $COLOUR"), Ok(()));
        let said = shell("background-bad", "echo $COLOUR; nice; exit 3").expect_err("it failed");
        assert!(said.starts_with("blue\n19\n"), "{said}");
        assert!(said.ends_with("`sh -c echo $COLOUR; nice; exit 3` failed: exit status: 3"), "{said}");
    }
}
