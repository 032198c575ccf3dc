//! Progress bar: one line that is redrawn on a terminal; elsewhere one line at every tenth of the build.

use std::io::{IsTerminal, Write};

/// Width of the bar itself in characters; with the text beside it the line stays within 80.
const WIDTH: usize = 20;

/// The progress bar and its state.
pub(super) struct BuildProgressBar {
    terminal: bool,
    tenth: usize,
    last: String,
}

impl BuildProgressBar {
    /// Returns an empty bar.
    pub(super) fn start() -> Self {
        Self { terminal: std::io::stdout().is_terminal(), tenth: 0, last: String::new() }
    }

    /// Shows `text` and the completed share, a number between 0 and 1.
    pub(super) fn show(&mut self, text: &str, share: f64) {
        if self.terminal {
            let line = drawn(text, share);
            if line != self.last {
                print!("\r\x1b[2K{line}");
                // A closed terminal is detected by the next print.
                let _ = std::io::stdout().flush();
                self.last = line;
            }
            return;
        }
        let tenth = (share * 10.0) as usize + usize::from(share > 0.0);
        if tenth > self.tenth {
            self.tenth = tenth;
            println!("{text}");
        }
    }

    /// Erases the line.
    pub(super) fn clear(&mut self) {
        if self.terminal && !self.last.is_empty() {
            print!("\r\x1b[2K");
            let _ = std::io::stdout().flush();
            self.last.clear();
        }
    }
}

fn drawn(text: &str, share: f64) -> String {
    let full = ((share * WIDTH as f64) as usize).min(WIDTH);
    format!("[{}{}] {text}", "#".repeat(full), " ".repeat(WIDTH - full))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_fills_from_empty_to_full() {
        assert_eq!(drawn("x", 0.0), format!("[{}] x", " ".repeat(20)));
        assert_eq!(drawn("x", 0.5), format!("[{}{}] x", "#".repeat(10), " ".repeat(10)));
        assert_eq!(drawn("x", 1.5), format!("[{}] x", "#".repeat(20)));
    }
}
