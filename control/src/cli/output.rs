//! Output of commands: aligned text for people and JSON for scripts, from the same values.

use serde::Serialize;

/// Output format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// Aligned text, for people.
    Text,
    /// One JSON document with a stable schema.
    Json,
}

impl Output {
    /// Prints a value as JSON, or as the text that `text` renders from it.
    pub(crate) fn print<T: Serialize>(self, value: &T, text: impl FnOnce(&T) -> String) {
        match self {
            Output::Json => println!("{}", serde_json::to_string_pretty(value).expect("API types are JSON")),
            Output::Text => println!("{}", text(value).trim_end()),
        }
    }
}

/// Renders a table with aligned columns; the last column may be of any length.
pub(crate) fn table(header: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut all = vec![header.iter().map(|cell| (*cell).to_uppercase()).collect::<Vec<_>>()];
    all.extend(rows);
    let columns = header.len();
    let width = |column: usize| all.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in &all {
        for (column, cell) in row.iter().enumerate() {
            text.push_str(cell);
            if column + 1 < columns {
                text.extend(std::iter::repeat_n(' ', widths[column] - cell.chars().count() + 2));
            }
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell_in_characters() {
        let rows = vec![vec!["Müller".to_string(), "1".into()], vec!["x".into(), "2".into()]];
        assert_eq!(table(&["n", "id"], rows), "N       ID\nMüller  1\nx       2\n");
    }

    #[test]
    fn a_table_without_rows_is_its_header() {
        assert_eq!(table(&["service", "ready"], vec![]), "SERVICE  READY\n");
    }

    #[test]
    fn columns_align() {
        let text = table(
            &["name", "state"],
            vec![vec!["minilm".into(), "ready".into()], vec!["a".into(), "b".into()]],
        );
        assert_eq!(text, "NAME    STATE\nminilm  ready\na       b\n");
    }
}
