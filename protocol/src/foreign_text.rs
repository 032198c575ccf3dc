//! Foreign text for people: what servers, nodes and workers send is shown, and never obeyed.
//!
//! Some characters move a terminal's cursor, hide text or reorder it, in a terminal and in a browser alike.
//! They are written as `\u{...}`; letters of every script stay as they are.

/// Returns one line of foreign text: line breaks and tabs are escaped too, so it cannot imitate another line.
#[must_use]
pub fn line(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_harmless(c) {
            out.push(c);
        } else {
            out.extend(c.escape_debug());
        }
    }
    debug_assert!(out.chars().all(is_harmless), "nothing that was escaped is left");
    out
}

/// Checks that a terminal or a browser prints this character, and does nothing else.
#[must_use]
pub fn is_harmless(c: char) -> bool {
    // A quotation mark and a backslash are escaped in Rust's source, not on a terminal.
    let is_harmless = matches!(c, '"' | '\'' | '\\') || c.escape_debug().len() == 1;
    debug_assert!(!(is_harmless && c.is_control()), "a control character is escaped");
    is_harmless
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Clears the screen, renames the window, prints text from right to left, hides a letter.
    const HOSTILE: &str =
        "ok\u{1b}[2J\u{1b}]0;root\u{7}\u{9b}31m \u{202e}live\u{2066}\u{200b}\u{feff}\r\ntwo\t3";

    #[test]
    fn foreign_text_is_shown_and_not_obeyed() {
        let shown = line(HOSTILE);
        let expected =
            r"ok\u{1b}[2J\u{1b}]0;root\u{7}\u{9b}31m \u{202e}live\u{2066}\u{200b}\u{feff}\r\ntwo\t3";
        assert_eq!(shown, expected);
        assert!(HOSTILE.contains('\u{1b}'), "as it was sent, a terminal would obey it");
        for (text, expected) in [
            ("plain, \"quoted\" and C:\\path", "plain, \"quoted\" and C:\\path"),
            ("Zürich 東京 Москва", "Zürich 東京 Москва"),
            ("e\u{301}", r"e\u{301}"),
            ("a\u{2028}b\u{e0041}\u{7f}", r"a\u{2028}b\u{e0041}\u{7f}"),
            ("", ""),
        ] {
            assert_eq!(line(text), expected);
        }
    }

    #[test]
    fn every_character_is_harmless_once_it_is_escaped() {
        for c in ('\0'..=char::MAX).step_by(7) {
            assert!(line(&c.to_string()).chars().all(is_harmless), "{}", c as u32);
        }
    }
}
