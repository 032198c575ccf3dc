//! The filter `tojson` as Hugging Face's renderer defines it: Python's `json.dumps` without escapes for HTML.
//! Jinja's own filter writes `<` as `\u003c`, which no model has seen.

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, Value};

/// Maximum depth of a value that is written.
const DEPTH_MAX: usize = 128;

/// Writes a value as JSON, in one line or indented by this many spaces.
///
/// # Errors
/// The value has no JSON form, or is nested too deeply.
pub(super) fn tojson(value: &Value, indent: Option<usize>, options: Kwargs) -> Result<String, Error> {
    let named: Option<usize> = options.get("indent")?;
    // No other form of escapes is written.
    let _: Option<bool> = options.get("ensure_ascii")?;
    let is_sorted = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    options.assert_all_used()?;
    let mut writer = JsonWriter { text: String::new(), indent: indent.or(named), depth: 0, is_sorted };
    writer.write(value)?;
    Ok(writer.text)
}

struct JsonWriter {
    text: String,
    indent: Option<usize>,
    depth: usize,
    /// Whether names are in order, and not as they were given.
    is_sorted: bool,
}

impl JsonWriter {
    fn write(&mut self, value: &Value) -> Result<(), Error> {
        match value.kind() {
            ValueKind::None | ValueKind::Undefined => self.text.push_str("null"),
            ValueKind::Bool => self.text.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.text.push_str(&value.to_string()),
            ValueKind::String => self.write_text(value)?,
            ValueKind::Seq | ValueKind::Iterable => {
                self.open('[')?;
                for (index, item) in value.try_iter()?.enumerate() {
                    self.next(index);
                    self.write(&item)?;
                }
                self.close(']');
            }
            ValueKind::Map => {
                self.open('{')?;
                let mut names: Vec<Value> = value.try_iter()?.collect();
                if self.is_sorted {
                    names.sort();
                }
                for (index, name) in names.into_iter().enumerate() {
                    self.next(index);
                    self.write_text(&name)?;
                    self.text.push_str(": ");
                    self.write(&value.get_item(&name)?)?;
                }
                self.close('}');
            }
            kind => return Err(invalid(format!("a value of kind {kind} has no JSON form"))),
        }
        Ok(())
    }

    fn write_text(&mut self, value: &Value) -> Result<(), Error> {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let quoted = serde_json::to_string(&text).map_err(|error| invalid(error.to_string()))?;
        self.text.push_str(&quoted);
        Ok(())
    }

    fn open(&mut self, bracket: char) -> Result<(), Error> {
        self.text.push(bracket);
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            Err(invalid(format!("nested more than {DEPTH_MAX} deep")))
        } else {
            Ok(())
        }
    }

    fn next(&mut self, index: usize) {
        let separator = match (index, self.indent) {
            (0, _) => "",
            (_, None) => ", ",
            (_, Some(_)) => ",",
        };
        self.text.push_str(separator);
        self.new_line();
    }

    fn close(&mut self, bracket: char) {
        self.depth -= 1;
        // An empty container stays on its line.
        if !self.text.ends_with(['[', '{']) {
            self.new_line();
        }
        self.text.push(bracket);
    }

    fn new_line(&mut self) {
        if let Some(indent) = self.indent {
            self.text.push('\n');
            self.text.extend(std::iter::repeat_n(' ', indent.min(16) * self.depth));
        }
    }
}

fn invalid(reason: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason)
}

#[cfg(test)]
mod tests {
    use super::*;
    use minijinja::Environment;

    fn shown(expression: &str) -> String {
        let mut environment = Environment::new();
        environment.add_filter("tojson", tojson);
        environment.render_str(expression, Value::from(())).expect("it renders")
    }

    #[test]
    fn json_is_written_as_python_writes_it() {
        // Each expected text is that of Python's json.dumps(value, ensure_ascii=False, indent=...).
        for (expression, expected) in [
            (
                r#"{{ {"b": "<a & 'é'>", "c": [1, 2.5, true, none]} | tojson }}"#,
                r#"{"b": "<a & 'é'>", "c": [1, 2.5, true, null]}"#,
            ),
            (r#"{{ {"b": 1, "a": {"d": 2, "c": 3}} | tojson }}"#, r#"{"b": 1, "a": {"d": 2, "c": 3}}"#),
            (
                r#"{{ {"b": 1, "a": {"d": 2, "c": 3}} | tojson(sort_keys=true) }}"#,
                r#"{"a": {"c": 3, "d": 2}, "b": 1}"#,
            ),
            (r#"{{ [] | tojson(indent=2) }}"#, "[]"),
            (r#"{{ {} | tojson }}"#, "{}"),
            (r#"{{ {"a": [1, {}]} | tojson(indent=2) }}"#, "{\n  \"a\": [\n    1,\n    {}\n  ]\n}"),
            (r#"{{ ["x"] | tojson(ensure_ascii=false) }}"#, r#"["x"]"#),
        ] {
            assert_eq!(shown(expression), expected, "{expression}");
        }
    }

    #[test]
    fn an_unknown_option_is_refused() {
        let mut environment = Environment::new();
        environment.add_filter("tojson", tojson);
        assert!(environment.render_str("{{ 1 | tojson(colour=2) }}", Value::from(())).is_err());
    }
}
