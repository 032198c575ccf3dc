//! Prose rules for comments in Rust and for Markdown: a sentence opens with a noun or a verb, never with a
//! pronoun such as *who* or *what*, and some words have a better one (`words.txt`).
//!
//! The words count in the texts that members sign too: the string literals of the renderer.
//!
//! The reader is a blunt one: it splits text at full stops, knows no grammar, and skips code, tables,
//! headings and the tests that SPECIFICATION.md names.

use super::sources::TextFile;

/// Openings of a sentence without a noun.
const OPENINGS: [&str; 15] = [
    "who",
    "whose",
    "whom",
    "whoever",
    "what",
    "whatever",
    "which",
    "whichever",
    "how",
    "why",
    "nobody",
    "somebody",
    "everybody",
    "anybody",
    "whomever",
];
/// Words with the better one: `word: replacement`, one a line.
const WORDS: &str = include_str!("words.txt");

/// Beginning of the paths of the renderer, whose string literals are prose that members sign.
const SIGNED_TEXTS: &str = "human-chain/src/render";

/// The kind of comment behind a line of code.
const TRAILING: &str = "trailing";

/// A finding in a file: its line and the advice.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct StyleFinding {
    pub(super) line: usize,
    pub(super) advice: String,
}

/// Number of sentences and words of a file.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) sentences: usize,
    pub(super) words: usize,
}

/// Returns the sentences of `file` that open without a noun.
pub(super) fn openings(file: &TextFile) -> Vec<StyleFinding> {
    let opens = |(line, sentence): (usize, String)| {
        let first = words(&sentence).next()?;
        let is_banned = OPENINGS.contains(&first.to_lowercase().as_str());
        is_banned
            .then(|| StyleFinding { line, advice: format!("`{first} …`: begin the sentence with a noun") })
    };
    sentences(file).into_iter().filter_map(opens).collect()
}

/// Returns the words of `file` that have a better one.
pub(super) fn banned(file: &TextFile) -> Vec<StyleFinding> {
    let mut findings = Vec::new();
    let signed = if file.path.starts_with(SIGNED_TEXTS) { literals(&file.text) } else { Vec::new() };
    for (line, sentence) in sentences(file).into_iter().chain(signed) {
        let spaced = format!(" {} ", words(&sentence).collect::<Vec<_>>().join(" ").to_lowercase());
        for (word, replacement) in WORDS.lines().filter_map(|line| line.split_once(": ")) {
            let count = spaced.matches(&format!(" {word} ")).count();
            let advice = format!("`{word}`: {replacement}");
            findings.extend((0..count).map(|_| StyleFinding { line, advice: advice.clone() }));
        }
    }
    findings
}

/// Counts the sentences and words of `file`.
pub(super) fn size(file: &TextFile) -> Size {
    let sentences = sentences(file);
    let words = sentences.iter().map(|(_, sentence)| words(sentence).count()).sum();
    Size { sentences: sentences.len(), words }
}

fn words(sentence: &str) -> impl Iterator<Item = &str> {
    let is_part = |character: char| character.is_alphanumeric() || character == '\'' || character == '-';
    sentence.split(move |character| !is_part(character)).filter(|word| word.contains(char::is_alphabetic))
}

/// Sentences with the line on which their paragraph begins.
fn sentences(file: &TextFile) -> Vec<(usize, String)> {
    let paragraphs = match file.path.rsplit('.').next() {
        Some("rs") => of_comments(&file.text),
        Some("md") => of_markdown(&file.text),
        _ => Vec::new(),
    };
    let cut = |(line, text): (usize, String)| split(&without_code(&text)).into_iter().map(move |s| (line, s));
    paragraphs.into_iter().flat_map(cut).collect()
}

/// A string literal and the line on which it begins.
type Literal = (usize, String);

/// String literals of Rust code before its tests, each with its line. A line that a backslash continues is
/// joined with the next.
fn literals(text: &str) -> Vec<Literal> {
    let code = text.split("#[cfg(test)]").next().unwrap_or_default();
    let (mut found, mut current): (Vec<Literal>, Option<Literal>) = (Vec::new(), None);
    for (at, line) in code.lines().enumerate() {
        let line = line.trim();
        if current.is_none() && line.starts_with("//") {
            continue;
        }
        let mut characters = line.chars();
        while let Some(character) = characters.next() {
            match (&mut current, character) {
                (Some((_, literal)), '\\') => {
                    // An escape is no letter; behind the last backslash the literal continues.
                    characters.next();
                    literal.push(' ');
                }
                (Some(_), '"') => found.extend(current.take()),
                (Some((_, literal)), other) => literal.push(other),
                // A quote within quotes is a character.
                (None, '\'') if characters.as_str().starts_with("\"'") => drop(characters.nth(1)),
                (None, '"') => current = Some((at + 1, String::new())),
                (None, _) => {}
            }
        }
    }
    found
}

/// Cuts a paragraph behind each full stop, question or exclamation mark that a capital follows.
fn split(text: &str) -> Vec<String> {
    let (mut found, mut current) = (Vec::new(), String::new());
    for word in text.split_whitespace() {
        let ended = current.ends_with(['.', '?', '!']);
        if ended && word.starts_with(|first: char| first.is_uppercase() || first == '(' || first == '"') {
            found.push(std::mem::take(&mut current));
        }
        if !current.is_empty() {
            current.push(' ');
        }
        current.push_str(word);
    }
    found.push(current);
    found.into_iter().filter(|sentence| words(sentence).next().is_some()).collect()
}

/// Replaces `code` by a noun.
fn without_code(text: &str) -> String {
    let part = |(at, part): (usize, &str)| if at % 2 == 0 { part.to_string() } else { "X".to_string() };
    text.split('`').enumerate().map(part).collect()
}

/// Paragraphs under construction.
#[derive(Default)]
struct Paragraphs {
    done: Vec<(usize, String)>,
    current: String,
    begins: usize,
}

impl Paragraphs {
    fn add(&mut self, line: usize, text: &str) {
        if self.current.is_empty() {
            self.begins = line;
        } else {
            self.current.push(' ');
        }
        self.current.push_str(text);
    }

    fn end(&mut self) {
        if !self.current.is_empty() {
            self.done.push((self.begins, std::mem::take(&mut self.current)));
        }
    }
}

/// Comments, whole lines and trailing ones; a blank comment line or another kind of comment ends a paragraph.
fn of_comments(text: &str) -> Vec<(usize, String)> {
    let (mut paragraphs, mut kind, mut in_code) = (Paragraphs::default(), "", false);
    for (at, line) in text.lines().enumerate() {
        let Some((found, words)) = comment(line) else {
            paragraphs.end();
            continue;
        };
        if words.starts_with("```") {
            in_code = !in_code;
        }
        let skipped = in_code || words.is_empty() || ["```", "|", "#"].iter().any(|s| words.starts_with(s));
        if skipped || found != kind || found == TRAILING || is_item(words) {
            paragraphs.end();
        }
        kind = found;
        if !skipped {
            paragraphs.add(at + 1, without_bullet(words));
        }
    }
    paragraphs.end();
    paragraphs.done
}

/// The kind of a comment and its words.
fn comment(line: &str) -> Option<(&'static str, &str)> {
    let trimmed = line.trim_start();
    for kind in ["///", "//!", "//"] {
        if let Some(words) = trimmed.strip_prefix(kind) {
            return Some((kind, words.trim()));
        }
    }
    // A trailing comment follows the end of a statement, an item of a list or a block.
    let (code, words) = line.rsplit_once(" // ")?;
    code.trim_end().ends_with([';', ',', '{', '}', ')']).then(|| (TRAILING, words.trim()))
}

/// Text outside of code, tables, headings and names of tests.
fn of_markdown(text: &str) -> Vec<(usize, String)> {
    let (mut paragraphs, mut in_code) = (Paragraphs::default(), false);
    for (at, line) in text.lines().enumerate() {
        let words = line.trim().trim_start_matches("> ");
        if words.starts_with("```") {
            in_code = !in_code;
        }
        let skipped = in_code
            || words.is_empty()
            || ["```", "|", "#", "<!--", "(test"].iter().any(|s| words.starts_with(s));
        if skipped || is_item(words) {
            paragraphs.end();
        }
        if !skipped {
            paragraphs.add(at + 1, without_bullet(words));
        }
    }
    paragraphs.end();
    paragraphs.done
}

fn is_item(words: &str) -> bool {
    without_bullet(words).len() < words.len()
}

/// The words of a list's item: `- `, `* ` or a number before them goes.
fn without_bullet(words: &str) -> &str {
    let numbered = words.trim_start_matches(|first: char| first.is_ascii_digit()).strip_prefix(". ");
    let numbered = numbered.filter(|_| words.starts_with(|first: char| first.is_ascii_digit()));
    words.strip_prefix("- ").or_else(|| words.strip_prefix("* ")).or(numbered).unwrap_or(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, text: &str) -> TextFile {
        TextFile::of(path, text)
    }

    fn opened(path: &str, text: &str) -> Vec<usize> {
        openings(&file(path, text)).iter().map(|finding| finding.line).collect()
    }

    #[test]
    fn a_sentence_that_opens_without_a_noun_is_found() {
        // Written with other marks, so that this file does not find itself.
        let text = "##! What it is.\n\n### The leader. Who asks\n### waits.\nfn f() {} ## Nobody\n\
                    let x = 1; ## How many\n";
        let text = &text.replace('#', "/");
        assert_eq!(opened("a.rs", text), [1, 3, 5, 6]);
        assert_eq!(opened("a.rs", "/// The node that asks, and how. Whether it runs.\n"), [0_usize; 0]);
        assert_eq!(
            opened("a.md", "# What\n\n- Whose turn\n\n1. Why not\n\n| Who |\n\n```\nWho\n```\n"),
            [3, 5]
        );
        assert_eq!(opened("a.txt", "Who\n"), [0_usize; 0]);
    }

    #[test]
    fn code_opens_a_sentence_as_a_noun_does() {
        assert_eq!(opened("a.rs", "// `who` is a variable. `What` too.\n"), [0_usize; 0]);
    }

    #[test]
    fn a_word_that_has_a_better_one_is_found_each_time() {
        let found = banned(&file("a.md", "The node shall wait, and shall not go on for ever.\n"));
        let advised: Vec<_> = found.iter().map(|finding| finding.advice.split(':').next()).collect();
        assert_eq!(advised.iter().filter(|advice| **advice == Some("`shall`")).count(), 2, "{found:?}");
        assert!(advised.contains(&Some("`for ever`")), "{found:?}");
        assert_eq!(banned(&file("a.rs", "let shall = \"shall\";\n")), []);
    }

    #[test]
    fn the_texts_that_members_sign_have_no_such_word_either() {
        let text = "fn f() {\n    if c == '\"' { g(\"it waits, \\\n       meanwhile\") }\n}\n\
                    #[cfg(test)]\nmod tests { const X: &str = \"whoever\"; }\n";
        let found = |path: &str| -> Vec<usize> {
            banned(&file(path, text)).iter().map(|finding| finding.line).collect()
        };
        assert_eq!(found("human-chain/src/render/new.rs"), [2], "the line on which the literal begins");
        assert_eq!(found("human-chain/src/ballot.rs"), [0_usize; 0]);
        let shall = format!("// shall\nf(\"{} shall\")\n", r"\u{1b}");
        assert_eq!(banned(&file("human-chain/src/render.rs", &shall)).len(), 2, "comments count as before");
    }

    #[test]
    fn sentences_and_words_are_counted() {
        let size = size(&file("a.rs", "//! One two. Three\n//! four.\n\nfn f() {}\n/// Five `code()`.\n"));
        assert_eq!(size, Size { sentences: 3, words: 6 });
    }

    #[test]
    fn each_word_of_the_list_has_a_replacement() {
        for line in WORDS.lines() {
            let (word, replacement) = line.split_once(": ").expect("`word: replacement`");
            assert!(!word.is_empty() && !replacement.is_empty(), "{line}");
        }
    }
}
