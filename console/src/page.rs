//! The frame of every page, and the parts that several pages share. Pages are pure: values in, markup out.
//!
//! Text of others reaches a page through [`foreign`] alone. Characters that reorder or hide text are written
//! out, and letters of another direction stay within their element.

pub(crate) mod evidence;
pub(crate) mod halts;
pub(crate) mod history;
pub(crate) mod inbox;
pub(crate) mod jobs;
pub(crate) mod members;
pub(crate) mod nodes;
pub(crate) mod overview;
pub(crate) mod passkeys;
pub(crate) mod problem;
pub(crate) mod projects;
pub(crate) mod proposal;
pub(crate) mod questions;
pub(crate) mod sign_in;
mod votes;

use crate::backend::PageSource;
use crate::sign_in::Visitor;
use human_chain::CircleState;
use maud::{DOCTYPE, Markup, html};
use protocol::foreign_text::line;
use protocol::governance::Proposal;
use protocol::{MemberId, Millis};

/// Column at which the renderer puts the values of its fields, in characters.
const VALUE_COLUMN: usize = 37;

/// Section of the console, as its navigation lists them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Section {
    Overview,
    Inbox,
    Jobs,
    History,
    Members,
    Nodes,
    Halts,
}

const SECTIONS: [(Section, &str, &str); 7] = [
    (Section::Overview, "Overview", "/console"),
    (Section::Inbox, "Inbox", "/console/inbox"),
    (Section::Jobs, "Jobs", "/console/jobs"),
    (Section::History, "History", "/console/history"),
    (Section::Members, "Members", "/console/members"),
    (Section::Nodes, "Nodes", "/console/nodes"),
    (Section::Halts, "Halts", "/console/halts"),
];

/// All that the frame of a page shows.
#[derive(Debug)]
pub(crate) struct PageFrame<'a> {
    pub(crate) circle: &'a CircleState,
    pub(crate) source: &'a PageSource,
    pub(crate) visitor: &'a Visitor,
    pub(crate) section: Section,
    /// Reason for which the page may be out of date.
    pub(crate) note: Option<&'a str>,
    /// Number of proposals that wait for this visitor's vote.
    pub(crate) waiting: usize,
    pub(crate) now: Millis,
}

/// Returns a whole page with this title and content.
pub(crate) fn document(frame: &PageFrame, title: &str, content: &Markup) -> Markup {
    let name = line(frame.circle.name());
    let link = |(section, label, path): &(Section, &str, &str)| {
        let current = (*section == frame.section).then_some("page");
        let count = (*section == Section::Inbox && frame.waiting > 0).then_some(frame.waiting);
        html! {
            a href=(path) aria-current=[current] {
                (label)
                @if let Some(count) = count { " " span.count { (count) span.unseen { " waiting" } } }
            }
        }
    };
    html! {
        (DOCTYPE)
        html lang="en" {
            (head(&format!("{title} · {name}")))
            body {
                a.skip href="#main" { "Skip to the content" }
                header {
                    p.circle { bdi { (name) } " " span.id { (frame.circle.id().short()) } }
                    nav aria-label="Sections" { @for section in &SECTIONS { (link(section)) } }
                    (halt_button())
                }
                (vouching(frame))
                @if let Some(note) = frame.note { p.vouching.weak role="status" { (line(note)) } }
                main id="main" tabindex="-1" { (content) }
                footer {
                    form method="post" action="/console/leave" {
                        p { "Signed in as " bdi { (frame.visitor.label()) } ". " button.plain { "Sign out" } }
                    }
                }
            }
        }
    }
}

/// Returns the way to the form that halts, which stands on every page.
pub(crate) fn halt_button() -> Markup {
    html! { a.halt href="/console/halt" { "Halt" span.unseen { " something" } } }
}

/// Returns a page for visitors who are not signed in.
pub(crate) fn bare_document(title: &str, content: &Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            (head(title))
            body.bare { main id="main" { (content) } }
        }
    }
}

fn head(title: &str) -> Markup {
    html! {
        head {
            meta charset="utf-8";
            meta name="viewport" content="width=device-width, initial-scale=1";
            meta name="color-scheme" content="light dark";
            title { (title) }
            link rel="icon" href="/console/static/icon.svg" type="image/svg+xml";
            link rel="stylesheet" href="/console/static/console.css";
            script src="/console/static/console.js" defer {}
        }
    }
}

/// Returns the statement about the party that vouches for this page.
fn vouching(frame: &PageFrame) -> Markup {
    let head = frame.circle.head();
    let decisions = counted(head.size, "decision");
    match frame.source {
        PageSource::OwnMachine => html! {
            p.vouching {
                "Verified on this machine: " (decisions) " since the founding, up to "
                code { (head.root.short()) } "."
            }
        },
        PageSource::Replica(id) => html! {
            p.vouching.weak {
                "Shown by control replica " (id) ", and as honest as it is. "
                code { "quorate console" } " shows the same pages from your own machine, which verifies all "
                (decisions) "."
            }
        },
    }
}

/// Returns text of others as one line that acts on nothing around it.
pub(crate) fn foreign(text: &str) -> Markup {
    html! { bdi { (line(text)) } }
}

/// Returns a rendering with exactly its bytes. The elements only mark its lines and columns, so that a narrow
/// screen can put a value below its name.
pub(crate) fn rendering(text: &str) -> Markup {
    html! {
        pre.rendering {
            @for (number, line) in text.split_inclusive('\n').enumerate() {
                @match columns(number, line) {
                    Some((name, value)) => span.line { span.name { (name) } bdi.value { (value) } },
                    None => span.line { (line) },
                }
            }
        }
    }
}

/// Returns a field's name and value. The first two lines are a sentence and a blank.
fn columns(number: usize, line: &str) -> Option<(&str, &str)> {
    let (at, _) = line.char_indices().nth(VALUE_COLUMN)?;
    let (name, value) = line.split_at(at);
    (number >= 2 && name.ends_with(' ')).then_some((name, value))
}

/// Returns the words of a rendering.
pub(crate) fn words(words: &[&str; 6]) -> Markup {
    html! { ol.words aria-label="Six words of this text" { @for word in words { li { (word) } } } }
}

/// Returns the first line of a proposal's text, without its margin mark.
pub(crate) fn sentence(proposal: &Proposal) -> String {
    let text = human_chain::render(proposal).text;
    text.lines().next().unwrap_or_default().trim_start_matches("| ").to_string()
}

/// Returns the head of a table with these columns.
pub(crate) fn table_head(columns: &[&str]) -> Markup {
    html! { thead { tr { @for column in columns { th scope="col" { (column) } } } } }
}

/// Returns names as a list in a sentence.
pub(crate) fn names(members: &[MemberId], none: &str) -> String {
    let names: Vec<&str> = members.iter().map(MemberId::as_str).collect();
    if names.is_empty() { none.to_string() } else { names.join(", ") }
}

/// Returns a number with its noun: `1 decision`, `2 decisions`.
pub(crate) fn counted(count: impl Into<u64>, noun: &str) -> String {
    let count = count.into();
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
}

/// Returns a time as people read it; the renderer also gives its milliseconds.
pub(crate) fn time(at: Millis) -> String {
    let text = human_chain::show_time(at);
    text.split(" (").next().unwrap_or_default().to_string()
}

/// Returns the time from now to a deadline, in its two largest units.
pub(crate) fn time_left(now: Millis, until: Millis) -> String {
    let seconds = until.0.saturating_sub(now.0) / 1000;
    let unit = |size: u64, noun: &str| counted(seconds / size, noun);
    match seconds {
        0 => "expired".into(),
        1..60 => format!("{} left", unit(1, "second")),
        60..3600 => format!("{} left", unit(60, "minute")),
        3600..86_400 => format!("{} left", unit(3600, "hour")),
        _ => format!("{} left", unit(86_400, "day")),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Returns the text of a page without its elements, as a browser's `textContent` has it.
    pub(crate) fn text_of(markup: &str) -> String {
        let mut text = String::new();
        let mut rest = markup;
        while let Some((before, tag)) = rest.split_once('<') {
            text.push_str(before);
            rest = tag.split_once('>').map_or("", |(_, rest)| rest);
        }
        text.push_str(rest);
        [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&amp;", "&")]
            .iter()
            .fold(text, |text, (entity, character)| text.replace(entity, character))
    }

    #[test]
    fn a_rendering_keeps_its_bytes() {
        let long = format!("| {:<34} {}\n", "manifest.model.root", "5e".repeat(32));
        let text =
            format!("| Start <b>it</b> & \"more\" of it, at once and for as long as it takes.\n|\n{long}|\n");
        let markup = rendering(&text).into_string();
        assert_eq!(text_of(&markup), text);
        assert!(!markup.contains("<b>"), "{markup}");
        assert!(markup.contains("<span class=\"name\">| manifest.model.root"), "{markup}");
        assert_eq!(markup.matches("class=\"name\"").count(), 1, "the sentence is no field: {markup}");
    }

    /// Attack: text of others that is markup, or that reorders the page around it.
    #[test]
    fn foreign_text_is_text() {
        let shown = foreign("<script>alert(1)</script> \u{202e}evil").into_string();
        assert_eq!(shown, "<bdi>&lt;script&gt;alert(1)&lt;/script&gt; \\u{202e}evil</bdi>");
    }

    #[test]
    fn a_time_is_shown_without_its_milliseconds_in_brackets() {
        assert_eq!(time(Millis(1_795_404_316_810)), "2026-11-23 03:25:16.810 UTC");
    }

    #[test]
    fn time_left_has_one_unit() {
        for (ms, expected) in [
            (0, "expired"),
            (999, "expired"),
            (1_000, "1 second left"),
            (119_000, "1 minute left"),
            (7_200_000, "2 hours left"),
            (3 * 86_400_000, "3 days left"),
        ] {
            assert_eq!(time_left(Millis(5), Millis(5 + ms)), expected);
        }
        assert_eq!(time_left(Millis(9), Millis(1)), "expired");
    }
}
