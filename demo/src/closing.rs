//! The closing message: the next steps as `quorate up` prints them, with a request to the story's own model.

/// Beginnings of the paragraph in which `quorate up` suggests a request.
const EXAMPLES: [&str; 2] = ["# nothing is served yet", "curl "];
/// Request to the small language model, which has a chat template.
const CHAT: &str = "\
curl -s $OPENAI_BASE_URL/chat/completions \\
  -H \"Authorization: Bearer $OPENAI_API_KEY\" \\
  -H 'Content-Type: application/json' -d '{
  \"model\":\"tiny\",
  \"temperature\":0,
  \"messages\":[{\"role\":\"user\",\"content\":\"What is three plus four?\"}]}'";

/// Returns the lines with the suggested request replaced: when they were printed, nothing was served yet.
pub(crate) fn with_chat_example(lines: &[String]) -> Vec<String> {
    let text = lines.join("\n");
    let is_example = |paragraph: &str| EXAMPLES.iter().any(|beginning| paragraph.starts_with(beginning));
    let paragraphs = text.trim().split("\n\n").map(|text| if is_example(text) { CHAT } else { text });
    paragraphs.collect::<Vec<_>>().join("\n\n").lines().map(str::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_suggested_request_is_replaced_and_fits_80_columns() {
        for example in ["# nothing is served yet\nquorate model import DIR", "curl -s $OPENAI_BASE_URL/x"] {
            let text = format!("\nKill any process.\n\n# logs\n\n{example}\n\nWhat is simulated here:\n  a");
            let lines: Vec<String> = text.lines().map(str::to_string).collect();
            let closing = with_chat_example(&lines);
            assert_eq!(
                closing.join("\n"),
                format!("Kill any process.\n\n# logs\n\n{CHAT}\n\nWhat is simulated here:\n  a")
            );
            assert!(closing.iter().all(|line| line.chars().count() <= 80), "{closing:#?}");
        }
    }
}
