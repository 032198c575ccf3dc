//! Index of the fields of a manifest's text: from a byte range to the dotted path there, and from a path to
//! its range.
//!
//! Built only to report an error, so it parses the text a second time.

use super::bounds::join;
use std::ops::Range;
use toml::de::{DeTable, DeValue};

/// All fields of a text, parents before their children.
pub(super) struct Fields {
    fields: Vec<Field>,
}

/// A field: `replicas.min`, `placement.regions[2]`.
struct Field {
    path: String,
    /// Range of the field's name; equal to the value's range for an element of a list.
    name: Range<usize>,
    value: Range<usize>,
}

impl Fields {
    /// Indexes the part of this text that can be parsed as TOML.
    pub(super) fn of(text: &str) -> Self {
        let mut fields = Vec::new();
        collect_table(DeTable::parse_recoverable(text).0.get_ref(), "", &mut fields);
        debug_assert!(fields.iter().all(|field| field.value.end <= text.len()), "ranges are of this text");
        Self { fields }
    }

    /// Returns the field whose name or value has exactly this range, else the innermost one around it.
    pub(super) fn path_of(&self, span: &Range<usize>) -> Option<&str> {
        let exact = self.fields.iter().rev().find(|field| field.name == *span || field.value == *span);
        let around = |range: &Range<usize>| range.start <= span.start && span.end <= range.end;
        let innermost = || {
            let found = self.fields.iter().filter(|field| around(&field.name) || around(&field.value));
            found.min_by_key(|field| if around(&field.name) { field.name.len() } else { field.value.len() })
        };
        exact.or_else(innermost).map(|field| field.path.as_str())
    }

    /// Returns the field whose whole value has exactly this range.
    pub(super) fn path_of_value(&self, span: &Range<usize>) -> Option<&str> {
        self.fields.iter().rev().find(|field| field.value == *span).map(|field| field.path.as_str())
    }

    /// Returns the range of the field's value; for a missing field, that of the innermost table that should
    /// contain it.
    pub(super) fn span_of(&self, path: &str) -> Range<usize> {
        let mut path = path;
        loop {
            if let Some(field) = self.fields.iter().find(|field| field.path == path) {
                return field.value.clone();
            }
            match path.rfind(['.', '[']) {
                Some(end) => {
                    debug_assert!(end < path.len(), "a parent's path is shorter");
                    path = &path[..end];
                }
                None => return 0..0,
            }
        }
    }
}

fn collect_table(table: &DeTable<'_>, path: &str, fields: &mut Vec<Field>) {
    for (key, value) in table {
        let path = join(path, key.get_ref());
        debug_assert!(path.ends_with(&join("", key.get_ref())), "a path ends with its own key: {path}");
        fields.push(Field { path: path.clone(), name: key.span(), value: value.span() });
        collect(value.get_ref(), &path, fields);
    }
}

fn collect(value: &DeValue<'_>, path: &str, fields: &mut Vec<Field>) {
    match value {
        DeValue::Table(table) => collect_table(table, path, fields),
        DeValue::Array(items) => {
            for (at, item) in items.iter().enumerate() {
                let path = format!("{path}[{at}]");
                fields.push(Field { path: path.clone(), name: item.span(), value: item.span() });
                collect(item.get_ref(), &path, fields);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "kind = \"service\"\n\
        model = { name = \"m\", root = \"1\" }\n\
        [replicas]\n\
        min = 7\n\
        [placement]\n\
        regions = [\"a\", \"b\"]\n\
        [placement.node_selector]\n\
        disk = \"ssd\"\n\
        \"a.b\" = \"x\"\n";

    fn at(part: &str) -> Range<usize> {
        let start = TEXT.find(part).expect("a part of the text");
        start..start + part.len()
    }

    #[test]
    fn ranges_and_paths_lead_to_each_other() {
        for (part, path) in [
            ("\"service\"", "kind"),
            ("\"m\"", "model.name"),
            ("{ name = \"m\", root = \"1\" }", "model"),
            ("7", "replicas.min"),
            ("\"b\"", "placement.regions[1]"),
            ("[\"a\", \"b\"]", "placement.regions"),
            ("\"ssd\"", "placement.node_selector.disk"),
            ("\"x\"", "placement.node_selector.\"a.b\""),
        ] {
            let range = at(part);
            let fields = Fields::of(TEXT);
            assert_eq!(fields.path_of(&range), Some(path), "{part}");
            assert_eq!(fields.path_of_value(&range), Some(path), "{part}");
            assert_eq!(fields.span_of(path), range, "{path}");
        }
    }

    #[test]
    fn names_have_the_path_of_their_field_but_are_no_value() {
        for (part, path) in
            [("kind", "kind"), ("min", "replicas.min"), ("disk", "placement.node_selector.disk")]
        {
            let fields = Fields::of(TEXT);
            assert_eq!(fields.path_of(&at(part)), Some(path), "{part}");
            assert_eq!(fields.path_of_value(&at(part)), None, "{part}");
        }
    }

    #[test]
    fn a_range_within_a_value_belongs_to_the_innermost_field() {
        let fields = Fields::of(TEXT);
        let inside = at("ssd");
        assert_eq!(fields.path_of(&inside), Some("placement.node_selector.disk"));
        let inside = at("m\", root");
        assert_eq!(fields.path_of(&inside), Some("model"));
    }

    #[test]
    fn an_absent_field_has_the_range_of_its_table() {
        let fields = Fields::of(TEXT);
        assert_eq!(fields.span_of("replicas.max"), fields.span_of("replicas"));
        assert_eq!(fields.span_of("placement.regions[7]"), fields.span_of("placement.regions"));
        assert_eq!(fields.span_of("resources.memory"), 0..0);
    }

    #[test]
    fn a_truncated_text_keeps_its_earlier_fields() {
        let fields = Fields::of("kind = \"service\"\n[replicas]\nmin = 1\nmax = ");
        assert_eq!(fields.path_of(&(34..35)), Some("replicas.min"));
        assert!(Fields::of("").path_of(&(0..0)).is_none());
    }
}
