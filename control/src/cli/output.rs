//! Output of commands: aligned text for people and JSON for scripts, from the same values. Nothing in it acts
//! on a terminal.

use crate::print;
use crate::terminal;
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
            Output::Json => print_json(value),
            Output::Text => print::out(terminal::lines(text(value).trim_end())),
        }
    }
}

/// Prints a value as a JSON document.
pub(crate) fn print_json<T: Serialize>(value: &T) {
    let document = serde_json::to_string_pretty(value).expect("API types are JSON");
    print::out(terminal::json(&document));
}

/// Renders a table with aligned columns; the last column may be of any length. A cell is one line: what is
/// foreign in it cannot imitate another row.
pub(crate) fn table(header: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut all = vec![header.iter().map(|cell| (*cell).to_uppercase()).collect::<Vec<_>>()];
    all.extend(rows.into_iter().map(|row| row.iter().map(|cell| terminal::line(cell)).collect()));
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

    /// Attack: a node's report adds a row, and clears the screen.
    #[test]
    fn a_cell_is_one_line_and_acts_on_no_terminal() {
        let detail = "no memory\nminilm   2/2    approved\u{1b}[2J";
        let text = table(&["service", "why"], vec![vec!["tiny".into(), detail.into()]]);
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.contains(r"no memory\nminilm   2/2    approved\u{1b}[2J"), "{text}");
        // Positive control: as the node reports it, the cell is a row of its own and clears the screen.
        let unescaped = text.replace(&terminal::line(detail), detail);
        assert!(unescaped.lines().count() == 3 && unescaped.contains('\u{1b}'), "{unescaped}");
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
