//! Separates calls from other text of an answer, piece by piece.
//!
//! A call is reported once its function is known, and its arguments as they come. Text that looks like a call
//! and is none, or names a function that the request did not give, stays text. A piece may end anywhere; the
//! possible beginning of a call is held back.

use super::reader::CallReader;
use super::{CallFormat, CallStyle};
use crate::engine::stop::overlap;
use std::sync::Arc;

/// End of a call of the tagged style.
const CLOSE: &str = "</tool_call>";
/// Longest whitespace that is held back before a call, in bytes.
const WHITESPACE_BYTES_MAX: usize = 64;

/// A part of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallDelta {
    /// Number of the call in the answer, from 0.
    pub index: usize,
    /// Name of the function, in the first part of a call.
    pub name: Option<String>,
    /// More text of the arguments.
    pub arguments: String,
}

/// Text of an answer apart from calls, and parts of calls that follow it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CalledText {
    pub content: String,
    pub calls: Vec<CallDelta>,
}

/// Place within an answer.
#[derive(Debug)]
enum CallPlace {
    /// Before any text.
    Start,
    /// In text.
    Text,
    /// In a call.
    Call(CallReader),
    /// After a call.
    After,
}

/// Parser of one answer.
#[derive(Debug)]
pub struct CallParser {
    format: CallFormat,
    /// Functions of the request.
    names: Arc<[String]>,
    place: CallPlace,
    /// Text that could be the beginning of a call, or that of a call whose function is not known yet.
    held: String,
    /// Calls so far.
    calls: usize,
    /// Bytes of the present call's arguments that were reported; `None` before its name was.
    reported: Option<usize>,
}

impl CallParser {
    /// Begins an answer to a request with these functions.
    #[must_use]
    pub fn new(format: CallFormat, names: Arc<[String]>) -> Self {
        assert!(!names.is_empty(), "there is a function to call");
        let (place, held) = (CallPlace::Start, String::new());
        Self { format, names, place, held, calls: 0, reported: None }
    }

    /// Returns the special token by which calls begin, if there is one.
    #[must_use]
    pub fn trigger(&self) -> Option<u32> {
        self.format.trigger
    }

    /// Returns the text that a special token within calls stands for, which the parser reads.
    #[must_use]
    pub fn text_of(&self, token: u32) -> Option<&'static str> {
        let is_within = matches!(self.place, CallPlace::Call(_)) && self.format.separator == Some(token);
        self.format.style.separator().filter(|_| is_within)
    }

    /// Reports whether the answer calls a function.
    #[must_use]
    pub fn has_called(&self) -> bool {
        self.calls > 0
    }

    /// Adds text; returns what certainly is text or part of a call.
    pub fn push(&mut self, text: &str) -> CalledText {
        let mut found = CalledText::default();
        for character in text.chars() {
            self.step(character, &mut found);
        }
        self.report(&mut found);
        found
    }

    /// Notes the special token by which calls begin; returns the text before it that was held back.
    pub fn begin_calls(&mut self) -> String {
        let held = std::mem::take(&mut self.held);
        let is_text = matches!(self.place, CallPlace::Start | CallPlace::Text);
        self.begin_call();
        if is_text { held.trim_end().to_owned() } else { String::new() }
    }

    /// Adds the last text; returns all that is left.
    pub fn finish(&mut self, text: &str) -> CalledText {
        let mut found = self.push(text);
        let is_reported = self.reported.is_some();
        let held = std::mem::take(&mut self.held);
        match self.place {
            CallPlace::Call(_) if is_reported => {}
            // Brackets and separators of a list end with it.
            CallPlace::After if self.format.style != CallStyle::Tagged => {}
            CallPlace::After if CLOSE.starts_with(held.trim_start()) => {}
            _ => found.content.push_str(&held),
        }
        found
    }

    fn step(&mut self, character: char, found: &mut CalledText) {
        match &mut self.place {
            CallPlace::Start => {
                self.held.push(character);
                if self.format.style == CallStyle::Bare && character == '{' && self.held.trim() == "{" {
                    self.begin_call();
                    self.read('{');
                } else if !character.is_whitespace() || self.held.len() > WHITESPACE_BYTES_MAX {
                    self.place = CallPlace::Text;
                    self.release_text(found);
                }
            }
            CallPlace::Text => {
                self.held.push(character);
                self.release_text(found);
            }
            CallPlace::Call(_) => {
                self.held.push(character);
                self.read(character);
                self.settle(found);
            }
            CallPlace::After => {
                self.held.push(character);
                self.after(character, found);
            }
        }
    }

    /// Sends text that is certainly before any call, or begins a call.
    fn release_text(&mut self, found: &mut CalledText) {
        let trigger = self.format.style.trigger();
        if let Some(before) = self.held.strip_suffix(trigger) {
            found.content.push_str(before.trim_end());
            self.held = trigger.to_owned();
            self.begin_call();
            return;
        }
        let certain = self.held.len() - overlap(&self.held, trigger);
        let blank = certain - self.held[..certain].trim_end().len();
        // Whitespace before a call belongs to none of both.
        let certain = if blank <= WHITESPACE_BYTES_MAX { certain - blank } else { certain };
        found.content.extend(self.held.drain(..certain));
    }

    fn begin_call(&mut self) {
        self.place = CallPlace::Call(match self.format.style {
            CallStyle::Named => CallReader::named(),
            CallStyle::Tagged | CallStyle::Listed | CallStyle::Bare => CallReader::new(),
        });
        self.reported = None;
    }

    /// Reads a character of a call. The bracket of a list precedes its first one.
    fn read(&mut self, character: char) {
        let CallPlace::Call(reader) = &mut self.place else { unreachable!("within a call") };
        let is_bracket = self.format.style == CallStyle::Listed && character == '[';
        let seen = self.held.trim_start_matches(self.format.style.trigger()).trim();
        if !(is_bracket && seen == "[") {
            reader.push(character);
        }
    }

    /// Ends a call that is complete, or returns what is none to the text.
    fn settle(&mut self, found: &mut CalledText) {
        let CallPlace::Call(reader) = &self.place else { return };
        let is_foreign = reader.name().is_some_and(|name| !self.names.iter().any(|known| known == name));
        if reader.is_invalid() || (is_foreign && self.reported.is_none()) {
            self.place = CallPlace::Text;
            let held = std::mem::take(&mut self.held);
            if self.reported.take().is_none() {
                found.content.push_str(&held);
            }
        } else if reader.is_complete() {
            self.report(found);
            self.place = CallPlace::After;
            self.reported = None;
            self.held.clear();
        }
    }

    /// Reports what is new of the present call.
    fn report(&mut self, found: &mut CalledText) {
        let CallPlace::Call(reader) = &self.place else { return };
        let Some(name) = reader.name() else { return };
        let arguments = reader.arguments();
        // A string of JSON is known only as a whole.
        if self.reported.is_none() && arguments.is_empty() {
            return;
        }
        let from = self.reported.unwrap_or(0);
        let is_first = self.reported.is_none();
        if !is_first && from == arguments.len() {
            return;
        }
        if is_first {
            self.calls += 1;
        }
        let delta = CallDelta {
            index: self.calls - 1,
            name: is_first.then(|| name.to_owned()),
            arguments: arguments[from..].to_owned(),
        };
        self.reported = Some(arguments.len());
        match found.calls.last_mut() {
            Some(last) if last.index == delta.index && !is_first => last.arguments.push_str(&delta.arguments),
            _ => found.calls.push(delta),
        }
    }

    /// Looks for the next call after one.
    fn after(&mut self, character: char, found: &mut CalledText) {
        match self.format.style {
            CallStyle::Tagged => {
                let rest = self.held.trim_start();
                if rest == CLOSE {
                    self.held.clear();
                } else if rest == self.format.style.trigger() {
                    self.begin_call();
                } else if !CLOSE.starts_with(rest) && !self.format.style.trigger().starts_with(rest) {
                    self.place = CallPlace::Text;
                    self.release_text(found);
                }
            }
            CallStyle::Named => {
                let rest = self.held.trim_start();
                if rest == self.format.style.trigger() {
                    self.begin_call();
                } else if !self.format.style.trigger().starts_with(rest) {
                    self.place = CallPlace::Text;
                    self.release_text(found);
                }
            }
            CallStyle::Listed | CallStyle::Bare => {
                let separator = if self.format.style == CallStyle::Listed { ',' } else { ';' };
                if character == '{' && self.held.trim_start().starts_with(separator) {
                    self.begin_call();
                    self.read('{');
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const F: &str = r#"{"name": "f", "arguments": {"x": 1}}"#;

    fn parser(style: CallStyle) -> CallParser {
        let names = ["f".to_owned(), "g".to_owned()].into();
        CallParser::new(CallFormat { style, trigger: None, separator: None }, names)
    }

    /// Parses pieces; returns the text and the calls.
    fn parsed(mut parser: CallParser, pieces: &[&str]) -> (String, Vec<(String, String)>) {
        let (mut content, mut calls): (String, Vec<(String, String)>) = (String::new(), Vec::new());
        for (index, piece) in pieces.iter().enumerate() {
            let is_last = index + 1 == pieces.len();
            let found = if is_last { parser.finish(piece) } else { parser.push(piece) };
            content.push_str(&found.content);
            for delta in found.calls {
                if let Some(name) = delta.name {
                    assert_eq!(delta.index, calls.len(), "calls are numbered in order");
                    calls.push((name, String::new()));
                }
                calls[delta.index].1.push_str(&delta.arguments);
            }
        }
        assert_eq!(parser.has_called(), !calls.is_empty());
        (content, calls)
    }

    /// Checks a text whole, cut anywhere, and by characters.
    fn check(style: CallStyle, text: &str, content: &str, calls: &[(&str, &str)]) {
        let calls: Vec<_> =
            calls.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
        let expected = (content.to_owned(), calls);
        assert_eq!(parsed(parser(style), &[text]), expected, "{text:?}");
        for (cut, _) in text.char_indices() {
            assert_eq!(
                parsed(parser(style), &[&text[..cut], &text[cut..]]),
                expected,
                "{text:?} cut at {cut}"
            );
        }
        let characters: Vec<String> = text.chars().map(String::from).collect();
        let characters: Vec<&str> = characters.iter().map(String::as_str).collect();
        assert_eq!(parsed(parser(style), &characters), expected, "{text:?} by characters");
    }

    #[test]
    fn tagged_calls_are_found_wherever_they_are_cut() {
        use CallStyle::Tagged;
        let x = r#"{"x": 1}"#;
        check(Tagged, &format!("<tool_call>\n{F}\n</tool_call>"), "", &[("f", x)]);
        let two = format!("I look.\n<tool_call>\n{F}\n</tool_call>\n<tool_call>{F}</tool_call>");
        check(Tagged, &two, "I look.", &[("f", x), ("f", x)]);
        check(Tagged, "no call, a < b, <tool", "no call, a < b, <tool", &[]);
        check(Tagged, "a\n\nb ", "a\n\nb ", &[]);
        // Text that only looks like a call.
        check(Tagged, "<tool_call>nothing", "<tool_call>nothing", &[]);
        let foreign = r#"<tool_call>{"name": "rm", "arguments": {}}</tool_call>"#;
        check(Tagged, foreign, foreign, &[]);
        // A call that the limit of tokens cuts.
        check(
            Tagged,
            r#"<tool_call>{"name": "g", "arguments": {"y": "<tool"#,
            "",
            &[("g", r#"{"y": "<tool"#)],
        );
        check(Tagged, r#"<tool_call>{"name": "g"#, r#"<tool_call>{"name": "g"#, &[]);
        check(Tagged, &format!("<tool_call>{F}</tool_call> and then"), " and then", &[("f", x)]);
    }

    #[test]
    fn listed_calls_are_found_wherever_they_are_cut() {
        use CallStyle::Listed;
        let x = r#"{"x": 1}"#;
        check(Listed, &format!("[TOOL_CALLS] [{F}, {F}]"), "", &[("f", x), ("f", x)]);
        check(Listed, &format!("So: [TOOL_CALLS][{F}]"), "So:", &[("f", x)]);
        check(Listed, "a [TOOL] b", "a [TOOL] b", &[]);
        check(Listed, "[TOOL_CALLS] later", "[TOOL_CALLS] later", &[]);
    }

    #[test]
    fn named_calls_are_found_wherever_they_are_cut() {
        use CallStyle::Named;
        let x = r#"{"x": 1}"#;
        check(Named, &format!("[TOOL_CALLS]f[ARGS]{x}"), "", &[("f", x)]);
        let two = format!("So: [TOOL_CALLS]f[ARGS]{x}[TOOL_CALLS] g [ARGS] {x}");
        check(Named, &two, "So:", &[("f", x), ("g", x)]);
        check(Named, &format!("[TOOL_CALLS]f[ARGS]{x} and then"), " and then", &[("f", x)]);
        // Text that only looks like a call.
        for text in ["a [TOOL] b", "[TOOL_CALLS] later on", "[TOOL_CALLS]rm[ARGS]{}", "[TOOL_CALLS]f{}"] {
            check(Named, text, text, &[]);
        }
        // A call that the limit of tokens cuts.
        let cut = r#"[TOOL_CALLS]g[ARGS]{"y": "[ARGS]"#;
        check(Named, cut, "", &[("g", r#"{"y": "[ARGS]"#)]);
    }

    #[test]
    fn a_special_token_stands_between_name_and_arguments() {
        let format = CallFormat { style: CallStyle::Named, trigger: Some(7), separator: Some(8) };
        let mut parser = CallParser::new(format, ["f".to_owned()].into());
        assert_eq!(parser.text_of(8), None, "it is text of no call");
        let _ = parser.begin_calls();
        parser.push("f");
        let mark = parser.text_of(8).expect("within a call");
        assert_eq!((mark, parser.text_of(7), parser.text_of(9)), ("[ARGS]", None, None));
        let (content, calls) = parsed(parser, &[mark, r#"{"x": 1}"#]);
        assert_eq!((content.as_str(), calls), ("", vec![("f".to_owned(), r#"{"x": 1}"#.to_owned())]));
    }

    #[test]
    fn bare_calls_begin_an_answer() {
        use CallStyle::Bare;
        let call = r#"{"name": "f", "parameters": {"x": 1}}"#;
        let x = r#"{"x": 1}"#;
        check(Bare, call, "", &[("f", x)]);
        check(Bare, &format!("\n{call}; {call}"), "", &[("f", x), ("f", x)]);
        check(Bare, &format!("<|python_tag|>{call}"), "", &[("f", x)]);
        // An answer in JSON is no call.
        check(Bare, r#"{"name": "Ada", "age": 36}"#, r#"{"name": "Ada", "age": 36}"#, &[]);
        check(Bare, &format!("Use {call}"), &format!("Use {call}"), &[]);
    }

    #[test]
    fn a_special_token_begins_calls_without_a_text() {
        for (style, text) in
            [(CallStyle::Listed, format!(" [{F}]")), (CallStyle::Tagged, format!("\n{F}\n</tool_call>"))]
        {
            let mut parser = parser(style);
            let before = parser.push("Look: ");
            let held = parser.begin_calls();
            let (rest, calls) = parsed(parser, &[&text]);
            assert_eq!((before.content + &held + &rest, calls.len()), ("Look:".to_owned(), 1), "{style:?}");
        }
    }
}
