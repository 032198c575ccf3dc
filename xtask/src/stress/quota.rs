//! A control group with half of the machine's CPU time, for the tests and all their processes. The other half
//! is for the work that keeps the cores busy: one process for each core.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Default period of the kernel's CPU bandwidth controller, in microseconds.
const PERIOD_US: usize = 100_000;
/// Default weight of a process, in control groups of version 1 and 2. The group has that of as many processes
/// as there are cores: with less, the other work would take more than its half.
const PROCESS_SHARES: usize = 1_024;
const PROCESS_WEIGHT: usize = 100;

/// The control group; it is removed on drop.
pub(super) struct Quota {
    group: PathBuf,
    quota_us: usize,
}

impl Quota {
    /// Creates the group, with control groups of version 2 or 1.
    pub(super) fn half() -> Result<Self, String> {
        let cores = crate::suite::cores();
        let quota_us = cores * PERIOD_US / 2;
        let name = format!("quorate-stress-{}", std::process::id());
        let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
        let parent = Path::new(if unified { "/sys/fs/cgroup" } else { "/sys/fs/cgroup/cpu" });
        let this = Self { group: parent.join(name), quota_us };
        let made = std::fs::create_dir(&this.group);
        made.map_err(|error| format!("create {} (root is needed): {error}", this.group.display()))?;
        if unified {
            write(&parent.join("cgroup.subtree_control"), "+cpu")?;
            write(&this.group.join("cpu.max"), &format!("{quota_us} {PERIOD_US}"))?;
            write(&this.group.join("cpu.weight"), &(cores * PROCESS_WEIGHT).to_string())?;
        } else {
            write(&this.group.join("cpu.cfs_period_us"), &PERIOD_US.to_string())?;
            write(&this.group.join("cpu.cfs_quota_us"), &quota_us.to_string())?;
            write(&this.group.join("cpu.shares"), &(cores * PROCESS_SHARES).to_string())?;
        }
        Ok(this)
    }

    /// Returns the number of cores that the group may use.
    pub(super) fn cores(&self) -> f64 {
        self.quota_us as f64 / PERIOD_US as f64
    }

    /// Wraps a command so that it runs in the group, with these additional environment variables, and with
    /// the file to mark in `mark_variable`.
    pub(super) fn wrapper(
        &self,
        variables: Vec<(&'static str, String)>,
        mark_variable: &'static str,
    ) -> impl Fn(Command, &Path) -> Command + Sync + use<> {
        let members = self.group.join("cgroup.procs");
        move |plain, mark| {
            let mut wrapped = Command::new("sh");
            wrapped.args(["-c", "echo $$ > \"$0\" && exec \"$@\""]).arg(&members);
            wrapped.arg("env").args(variables.iter().map(|(name, value)| format!("{name}={value}")));
            wrapped.arg(format!("{mark_variable}={}", mark.display()));
            wrapped.arg(plain.get_program()).args(plain.get_args());
            if let Some(directory) = plain.get_current_dir() {
                wrapped.current_dir(directory);
            }
            wrapped
        }
    }
}

impl Drop for Quota {
    fn drop(&mut self) {
        // A process that outlived a failed test keeps the group, which is harmless.
        let _ = std::fs::remove_dir(&self.group);
    }
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    std::fs::write(path, text).map_err(|error| format!("write {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrapped_command_joins_the_group_and_keeps_its_directory_and_arguments() {
        let directory = crate::process::target().join(format!("quota-test-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a directory");
        let quota = Quota { group: directory.clone(), quota_us: PERIOD_US };
        let mut plain = Command::new("sh");
        plain.args(["-c", "echo $1 $COLOUR $MARK $$; pwd", "name", "a b"]).current_dir("/");
        let wrap = quota.wrapper(vec![("COLOUR", "blue".into())], "MARK");
        let output = wrap(plain, Path::new("/mark")).output().expect("it runs");
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        let joined = std::fs::read_to_string(directory.join("cgroup.procs")).expect("it joined");
        assert_eq!(printed, format!("a b blue /mark {}\n/\n", joined.trim()));
        std::fs::remove_dir_all(&directory).expect("removed");
    }
}
