//! Foreign text on a terminal: what servers, nodes and workers send is shown, and never obeyed.
//!
//! A terminal obeys escape sequences, and reorders or hides text at the word of some characters. Text of
//! others therefore reaches it through this module alone. Control characters, bidirectional marks, invisible
//! and combining characters are written as `\u{...}`; letters of every script stay as they are. Scripts that
//! need the exact text read the JSON, where the same characters are written in JSON's own way.

pub use protocol::foreign_text::line;

use protocol::foreign_text::is_harmless;
use std::fmt::Write;

/// Returns text of several lines, of which parts are foreign: each line is escaped, the line breaks stay.
#[must_use]
pub fn lines(text: &str) -> String {
    text.split('\n').map(line).collect::<Vec<_>>().join("\n")
}

/// Returns a JSON document with the same meaning, in which nothing acts on a terminal.
///
/// Between its strings JSON has only ASCII, so what is escaped here is within a string.
#[must_use]
pub fn json(document: &str) -> String {
    let mut out = String::with_capacity(document.len());
    for c in document.chars() {
        if c == '\n' || is_harmless(c) {
            out.push(c);
            continue;
        }
        for unit in c.encode_utf16(&mut [0; 2]) {
            write!(out, "\\u{unit:04x}").expect("a string takes every text");
        }
    }
    debug_assert!(out.split('\n').flat_map(str::chars).all(is_harmless), "nothing acts on a terminal");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Clears the screen, renames the window, prints text from right to left, hides a letter.
    const HOSTILE: &str =
        "ok\u{1b}[2J\u{1b}]0;root\u{7}\u{9b}31m \u{202e}live\u{2066}\u{200b}\u{feff}\r\ntwo\t3";

    #[test]
    fn only_the_line_breaks_of_several_lines_stay() {
        assert_eq!(lines("a\u{1b}[1m\nb\r\n"), "a\\u{1b}[1m\nb\\r\n");
        assert_eq!(lines("no break"), "no break");
    }

    #[test]
    fn a_json_document_keeps_its_meaning_and_acts_on_no_terminal() {
        let value = serde_json::json!({ "text": HOSTILE, "tag \u{e0041}": "東京 \u{1f600}" });
        let document = serde_json::to_string_pretty(&value).expect("JSON");
        assert!(document.contains('\u{9b}') && document.contains('\u{202e}'), "JSON alone leaves these");
        let shown = json(&document);
        assert!(shown.chars().all(|c| c == '\n' || is_harmless(c)), "{shown}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).expect("JSON"), value);
    }
}
