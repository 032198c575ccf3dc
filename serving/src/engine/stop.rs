//! Stop conditions of an answer: text is never sent past a stop string.
//!
//! Text that could be the beginning of a stop string is held back until the match is decided.

/// Conditions on which an answer ends before its longest form.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StopConditions {
    /// Strings before which it ends; at each position the shortest counts.
    pub strings: Vec<String>,
    /// Tokens before which it ends, beside the model's end tokens.
    pub tokens: Vec<u32>,
    /// Whether the text has the string or the token that ended it.
    pub is_included: bool,
    /// Whether the model's end tokens do not end it.
    pub ignores_end: bool,
    /// Tokens before which it does not end: no end or stop token is drawn, and no string counts.
    pub tokens_min: usize,
}

/// Holds text back while it could be the beginning of a stop string.
#[derive(Debug)]
pub struct StopStrings {
    stops: Vec<String>,
    /// Whether the text that is sent has the string that was found.
    is_included: bool,
    held: String,
}

/// Result of checking a chunk of text for stop strings.
#[derive(Debug, PartialEq, Eq)]
pub enum StopCheck {
    /// Text to send; generation continues.
    Text(String),
    /// Text to send; a stop string followed it.
    Stopped(String),
}

impl StopStrings {
    /// Watches for these strings; empty ones are ignored. The text before one is sent, with the string itself
    /// where it `is_included`.
    #[must_use]
    pub fn new(stops: Vec<String>, is_included: bool) -> Self {
        let stops = stops.into_iter().filter(|stop| !stop.is_empty()).collect();
        Self { stops, is_included, held: String::new() }
    }

    /// Adds text; returns the part that is certainly before any stop string.
    pub fn push(&mut self, text: &str) -> StopCheck {
        self.held.push_str(text);
        let find = |stop: &String| Some((self.held.find(stop.as_str())?, stop.len()));
        if let Some((at, length)) = self.stops.iter().filter_map(find).min() {
            self.held.truncate(if self.is_included { at + length } else { at });
            return StopCheck::Stopped(std::mem::take(&mut self.held));
        }
        let keep = self.stops.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        StopCheck::Text(std::mem::replace(&mut self.held, rest))
    }

    /// Returns the text held back, when generation ends for another reason.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Returns the number of bytes at the end of `text` that are a proper prefix of `stop`.
pub(super) fn overlap(text: &str, stop: &str) -> usize {
    assert!(!stop.is_empty(), "an empty stop string is ignored earlier");
    let longest = text.len().min(stop.len() - 1);
    (1..=longest).rev().find(|length| text.as_bytes().ends_with(&stop.as_bytes()[..*length])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(stops: &[&str], chunks: &[&str]) -> (String, bool) {
        feed_as(stops, chunks, false)
    }

    fn feed_as(stops: &[&str], chunks: &[&str], is_included: bool) -> (String, bool) {
        let mut watch = StopStrings::new(stops.iter().map(|stop| (*stop).to_owned()).collect(), is_included);
        let mut sent = String::new();
        for chunk in chunks {
            match watch.push(chunk) {
                StopCheck::Text(text) => sent.push_str(&text),
                StopCheck::Stopped(text) => return (sent + &text, true),
            }
        }
        (sent + &watch.finish(), false)
    }

    #[test]
    fn a_stop_string_is_sent_where_it_is_included() {
        for (stops, chunks, sent) in [
            (&["STOP"][..], &["one ST", "OP two"][..], "one STOP"),
            (&["abc", "ab"], &["xabc"], "xab"), // At one position the shortest counts.
            (&["\n"], &["line"], "line"),
        ] {
            assert_eq!(feed_as(stops, chunks, true).0, sent, "{stops:?} {chunks:?}");
        }
    }

    #[test]
    fn stop_strings_are_found_across_pieces_and_never_sent() {
        let cases: &[(&[&str], &[&str], &str, bool)] = &[
            (&[], &["a", "b"], "ab", false),
            (&["STOP"], &["one ST", "OP two"], "one ", true),
            (&["STOP"], &["one ST", "ART"], "one START", false),
            (&["STOP"], &["one STO"], "one STO", false),
            (&["b", "abc"], &["a", "bc"], "", true), // The match that begins first wins.
            (&["\n\n"], &["line\n", "\nrest"], "line", true),
            (&["é"], &["caf", "é!"], "caf", true),
            (&["aab"], &["aaaab"], "aa", true),
            (&["", "x"], &["yx"], "y", true),
        ];
        for (stops, chunks, sent, stopped) in cases {
            assert_eq!(feed(stops, chunks), ((*sent).to_owned(), *stopped), "{stops:?} {chunks:?}");
        }
    }

    #[test]
    fn text_that_cannot_become_a_stop_string_is_sent_at_once() {
        let mut watch = StopStrings::new(vec!["STOP".to_owned()], false);
        assert_eq!(watch.push("hello"), StopCheck::Text("hello".to_owned()));
        assert_eq!(watch.push(" S"), StopCheck::Text(" ".to_owned()));
        assert_eq!(watch.push("he"), StopCheck::Text("She".to_owned()));
    }
}
