//! The source of a chat template, before it is compiled.

/// Removes the effect of `{% generation %}` and `{% endgeneration %}`, with which templates mark what an
/// assistant says, for training. Their block is printed as any other, and their whitespace control stays.
pub(super) fn without_generation(source: &str) -> String {
    let mut written = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let inner = at + 2 + usize::from(rest[at + 2..].starts_with(['-', '+']));
        let word = inner + (rest[inner..].len() - rest[inner..].trim_start().len());
        let end = rest[word..].find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let end = end.map_or(rest.len(), |length| word + length);
        let replacement = match &rest[word..end] {
            "generation" => Some("if true"),
            "endgeneration" => Some("endif"),
            _ => None,
        };
        written.push_str(&rest[..word]);
        written.push_str(replacement.unwrap_or(&rest[word..end]));
        rest = &rest[end..];
    }
    written + rest
}

/// Returns the quoted texts within the template's expressions and statements: what it may look for in a
/// message. Escapes other than of quotes are those of Jinja.
pub(super) fn literals(source: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = source;
    while let Some(at) = rest.find('{') {
        rest = &rest[at + 1..];
        let close = match rest.as_bytes().first() {
            Some(b'{') => "}}",
            Some(b'%') => "%}",
            Some(b'#') => {
                rest = rest.find("#}").map_or("", |end| &rest[end + 2..]);
                continue;
            }
            _ => continue,
        };
        rest = literals_until(&rest[1..], close, &mut found);
    }
    found.sort_unstable();
    found.dedup();
    found
}

/// Collects the quoted texts up to `close`; returns what follows it.
fn literals_until<'s>(source: &'s str, close: &str, found: &mut Vec<String>) -> &'s str {
    let mut characters = source.char_indices();
    while let Some((at, character)) = characters.next() {
        if source[at..].starts_with(close) {
            return &source[at + close.len()..];
        }
        if character != '\'' && character != '"' {
            continue;
        }
        let mut text = String::new();
        loop {
            match characters.next() {
                None => return "",
                Some((_, '\\')) => match characters.next() {
                    Some((_, 'n')) => text.push('\n'),
                    Some((_, 't')) => text.push('\t'),
                    Some((_, 'r')) => text.push('\r'),
                    Some((_, escaped)) => text.push(escaped),
                    None => return "",
                },
                Some((_, end)) if end == character => break,
                Some((_, other)) => text.push(other),
            }
        }
        if !text.is_empty() {
            found.push(text);
        }
    }
    ""
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_of_generation_become_blocks_without_effect() {
        for (source, expected) in [
            ("a{% generation %}b{% endgeneration %}c", "a{% if true %}b{% endif %}c"),
            ("{%- generation -%} x {%+ endgeneration -%}", "{%- if true -%} x {%+ endif -%}"),
            ("{%generation%}{%endgeneration%}", "{%if true%}{%endif%}"),
            ("{% set generation = 1 %}{{ generation }}{% generations %}", ""),
            ("{% if x %}{%", ""),
            ("{%", ""),
        ] {
            let expected = if expected.is_empty() { source } else { expected };
            assert_eq!(without_generation(source), expected);
        }
    }

    #[test]
    fn quoted_texts_of_a_template_are_found() {
        let source = r#"don't {{ 'a' + "b\n" }}{# 'no' #}{% if x in '</think>' %} it's {{ 'q\'}}' }}{{ '"#;
        assert_eq!(literals(source), ["</think>", "a", "b\n", "q'}}"]);
        assert!(literals("{{ 'open").is_empty() && literals("{").is_empty());
    }
}
