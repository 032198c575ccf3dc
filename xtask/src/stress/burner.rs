//! Processes that keep every core busy.

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

/// One busy process per core; they end on drop, or with this process.
pub(super) struct Burners(Vec<Child>);

impl Burners {
    /// Starts this program once per core, as `xtask burn`.
    pub(super) fn start() -> Result<Self, String> {
        let program = std::env::current_exe().map_err(|error| format!("find this program: {error}"))?;
        let cores = crate::suite::cores();
        let mut burners = Self(Vec::new());
        for _ in 0..cores {
            let child = Command::new(&program).arg("burn").stdin(Stdio::piped()).spawn();
            burners.0.push(child.map_err(|error| format!("run {}: {error}", program.display()))?);
        }
        Ok(burners)
    }

    /// Returns the number of processes.
    pub(super) fn count(&self) -> usize {
        self.0.len()
    }
}

impl Drop for Burners {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // A process that has exited needs no signal.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Computes until its standard input ends, which happens when its parent exits.
pub(crate) fn burn() {
    let orphaned = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // An error counts as the end too.
            let _ = std::io::stdin().read(&mut [0]);
            orphaned.store(true, Ordering::Relaxed);
        });
        let mut number = 1_u64;
        while !orphaned.load(Ordering::Relaxed) {
            for _ in 0..1_000_000 {
                number = std::hint::black_box(number.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(7));
            }
        }
    });
}
