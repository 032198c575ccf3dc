//! Reads one call, a JSON object of name and arguments, as its text arrives.
//!
//! The text of the arguments is passed on as the model wrote it. Their place in the object does not matter; a
//! string of JSON is accepted in their place.

use super::ARGUMENTS_MARK;
use serde_json::Value;

/// Longest name of a field or function that is read, in bytes.
const NAME_BYTES_MAX: usize = 256;

/// Place within the object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Start,
    /// In a name that a mark ends.
    Bare,
    /// Before a name of a field, or the end.
    Field,
    Name,
    Colon,
    Value,
    /// Within a value of this depth.
    Within(usize),
    /// After a value.
    Next,
    End,
    /// The text is no call.
    Invalid,
}

/// Reader of one call.
#[derive(Debug)]
pub(super) struct CallReader {
    place: Place,
    /// Text of the field's name or value that is being read.
    text: String,
    field: String,
    is_quoted: bool,
    is_escaped: bool,
    /// Whether the arguments are the whole value after a name and a mark.
    is_named: bool,
    name: Option<String>,
    arguments: String,
}

impl CallReader {
    pub(super) fn new() -> Self {
        Self {
            place: Place::Start,
            text: String::new(),
            field: String::new(),
            is_quoted: false,
            is_escaped: false,
            is_named: false,
            name: None,
            arguments: String::new(),
        }
    }

    /// Begins a call of which the name comes first, then a mark, then the arguments alone.
    pub(super) fn named() -> Self {
        Self { place: Place::Bare, is_named: true, ..Self::new() }
    }

    /// Reads the next character.
    pub(super) fn push(&mut self, character: char) {
        let place = self.next(character);
        self.place = if self.is_named && place == Place::Next { self.end() } else { place };
    }

    fn next(&mut self, character: char) -> Place {
        match (self.place, character) {
            (Place::Bare, _) => self.bare_name(character),
            (Place::Within(depth), _) => self.within(depth, character),
            (Place::Name, _) => self.field_name(character),
            (place @ (Place::End | Place::Invalid), _) => place,
            (place, ' ' | '\n' | '\t' | '\r') => place,
            (Place::Start, '{') | (Place::Next, ',') => Place::Field,
            (Place::Field, '"') => self.begin('"', Place::Name),
            (Place::Field | Place::Next, '}') => self.end(),
            (Place::Colon, ':') => Place::Value,
            (Place::Value, _) => self.begin_value(character),
            _ => Place::Invalid,
        }
    }

    /// Reads on in a name up to the mark.
    fn bare_name(&mut self, character: char) -> Place {
        self.text.push(character);
        if let Some(name) = self.text.strip_suffix(ARGUMENTS_MARK) {
            self.name = Some(name.trim().to_owned());
            "arguments".clone_into(&mut self.field);
            return Place::Value;
        }
        let is_name = self.text.len() <= NAME_BYTES_MAX && character != '{';
        if is_name { Place::Bare } else { Place::Invalid }
    }

    /// Returns the name of the function, once it is read.
    pub(super) fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Returns the text of the arguments so far.
    pub(super) fn arguments(&self) -> &str {
        &self.arguments
    }

    pub(super) fn is_complete(&self) -> bool {
        self.place == Place::End
    }

    pub(super) fn is_invalid(&self) -> bool {
        self.place == Place::Invalid
    }

    fn begin(&mut self, first: char, place: Place) -> Place {
        self.text.clear();
        self.text.push(first);
        (self.is_quoted, self.is_escaped) = (first == '"', false);
        place
    }

    fn field_name(&mut self, character: char) -> Place {
        self.text.push(character);
        if self.ends_quote(character) {
            let Ok(Value::String(field)) = serde_json::from_str(&self.text) else { return Place::Invalid };
            self.field = field;
            return Place::Colon;
        }
        if self.text.len() > NAME_BYTES_MAX { Place::Invalid } else { Place::Name }
    }

    fn is_arguments(&self) -> bool {
        matches!(self.field.as_str(), "arguments" | "parameters")
    }

    fn begin_value(&mut self, character: char) -> Place {
        let is_object = character == '{';
        match (self.field.as_str(), character) {
            ("name", '"') => {}
            ("name", _) => return Place::Invalid,
            (_, '"' | '{') => {}
            (_, _) if self.is_arguments() => return Place::Invalid,
            (_, ',' | '}' | ']' | ':') => return Place::Invalid,
            _ => {}
        }
        if self.is_arguments() {
            if !self.arguments.is_empty() {
                return Place::Invalid;
            }
            if is_object {
                self.arguments.push('{');
            }
        }
        let depth = usize::from(is_object || character == '[');
        self.begin(character, Place::Within(depth))
    }

    /// Reads on within a value of this depth.
    fn within(&mut self, depth: usize, character: char) -> Place {
        let streams = self.is_arguments() && self.text.starts_with('{');
        // A number or a literal ends before the next character.
        if depth == 0 && !self.is_quoted && matches!(character, ',' | '}' | ' ' | '\n' | '\t' | '\r') {
            return match character {
                ',' => Place::Field,
                '}' => self.end(),
                _ => Place::Next,
            };
        }
        if streams {
            self.arguments.push(character);
        } else if self.is_arguments() || self.field == "name" {
            self.text.push(character);
        }
        if self.is_quoted {
            let is_end = self.ends_quote(character);
            return if is_end && depth == 0 { self.end_text() } else { Place::Within(depth) };
        }
        match character {
            '"' => {
                (self.is_quoted, self.is_escaped) = (true, false);
                Place::Within(depth)
            }
            '{' | '[' => Place::Within(depth + 1),
            '}' | ']' if depth <= 1 => Place::Next,
            '}' | ']' => Place::Within(depth - 1),
            _ => Place::Within(depth),
        }
    }

    /// Reads a character within quotes; returns whether it ends them.
    fn ends_quote(&mut self, character: char) -> bool {
        if std::mem::take(&mut self.is_escaped) {
            return false;
        }
        match character {
            '\\' => self.is_escaped = true,
            '"' => self.is_quoted = false,
            _ => {}
        }
        !self.is_quoted
    }

    /// Takes a value that is a text: the name, or arguments as a string of JSON.
    fn end_text(&mut self) -> Place {
        if self.field != "name" && !self.is_arguments() {
            return Place::Next;
        }
        let Ok(Value::String(text)) = serde_json::from_str(&self.text) else { return Place::Invalid };
        if self.field == "name" {
            self.name = Some(text);
        } else {
            self.arguments = text;
        }
        Place::Next
    }

    fn end(&mut self) -> Place {
        if self.name.is_none() {
            return Place::Invalid;
        }
        if self.arguments.is_empty() {
            self.arguments.push_str("{}");
        }
        Place::End
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> CallReader {
        let mut reader = CallReader::new();
        text.chars().for_each(|character| reader.push(character));
        reader
    }

    #[test]
    fn names_and_arguments_are_found_in_any_order() {
        for (text, arguments) in [
            (
                r#"{"name": "f", "arguments": {"a": [1, {"b": "}\"{"}], "c": "é"}}"#,
                r#"{"a": [1, {"b": "}\"{"}], "c": "é"}"#,
            ),
            (r#"{"arguments": {"x": 1}, "name": "f"}"#, r#"{"x": 1}"#),
            ("{\n \"name\" : \"f\" ,\"parameters\":{ } }", "{ }"),
            (r#"{"name": "f"}"#, "{}"),
            (
                r#"{"type": "tool", "id": 7, "tags": ["}"], "name": "\u0066", "arguments": "{\"x\": 1}"}"#,
                r#"{"x": 1}"#,
            ),
        ] {
            let reader = read(text);
            assert!(reader.is_complete(), "{text}: {reader:?}");
            assert_eq!((reader.name(), reader.arguments()), (Some("f"), arguments), "{text}");
            for cut in (1..text.len()).filter(|cut| text.is_char_boundary(*cut)) {
                let cut = read(&text[..cut]);
                assert!(!cut.is_complete() && !cut.is_invalid(), "{cut:?}");
                let is_text = text.contains(r#""{\"x"#);
                assert!(is_text || arguments.starts_with(cut.arguments()), "what was sent stays");
            }
        }
    }

    #[test]
    fn a_name_before_a_mark_has_its_arguments_behind_it() {
        let read = |text: &str| {
            let mut reader = CallReader::named();
            text.chars().for_each(|character| reader.push(character));
            reader
        };
        for (text, arguments) in [
            (r#"f[ARGS]{"x": [1, {"y": "}"}]}"#, r#"{"x": [1, {"y": "}"}]}"#),
            ("\n f [ARGS] {}", "{}"),
            (r#"f[ARGS]"{\"x\": 1}""#, r#"{"x": 1}"#),
            (r#"f[ARGS]{"name": "g", "arguments": {}}"#, r#"{"name": "g", "arguments": {}}"#),
        ] {
            let reader = read(text);
            assert!(reader.is_complete(), "{text}: {reader:?}");
            assert_eq!((reader.name(), reader.arguments()), (Some("f"), arguments), "{text}");
        }
        for text in ["f[ARGS", "f[ARGS]", "f[ARGS]{"] {
            let reader = read(text);
            assert!(!reader.is_complete() && !reader.is_invalid(), "{text}: {reader:?}");
        }
        for text in ["f{", "f[ARGS]1", "f[ARGS][1]", &"f".repeat(300)] {
            assert!(read(text).is_invalid(), "{text}");
        }
    }

    #[test]
    fn other_text_is_no_call() {
        let long = format!("{{\"{}", "x".repeat(300));
        for text in [
            "x",
            "[",
            "{1",
            r#"{"a" 1"#,
            r#"{"name": 1"#,
            r#"{"arguments": []"#,
            r#"{"arguments": {}}"#,
            "{}",
            &long,
        ] {
            assert!(read(text).is_invalid(), "{text}");
        }
    }
}
