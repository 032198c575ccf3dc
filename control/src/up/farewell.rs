//! The closing message: next steps, as commands that work when pasted.
//!
//! The commands name the services that really run. Each is on lines of its own that fit a terminal of 80
//! columns.

use super::cluster::LocalCluster;
use super::layout::MEMBERS;
use crate::print;
use crate::terminal;
use anyhow::Result;
use protocol::api::{Page, ServiceView, Status};
use protocol::manifest::{Manifest, ServiceManifest, Task};
use std::path::{Path, PathBuf};

/// Maximum length of a command line, in characters: terminals break longer lines in the middle of words.
const COLUMNS: usize = 80;

/// Prints the closing message.
///
/// # Errors
/// Returns an error if control does not list the services.
pub(super) async fn print_farewell(cluster: &LocalCluster) -> Result<()> {
    let services: Page<ServiceView> = cluster.context()?.client()?.get("/v1/services").await?;
    let status = cluster.status().await?;
    let program = std::env::current_exe().ok().and_then(|program| program.parent().map(Path::to_path_buf));
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let known = |directory: &PathBuf| std::env::split_paths(&paths).any(|path| path == *directory);
    let farewell = Farewell {
        program: program.filter(|directory| !known(directory)),
        context: cluster.layout.context(),
        key: cluster.layout.api_key(),
        logs: cluster.layout.root().join("logs"),
        member_key: cluster.layout.member_key(MEMBERS[0]),
        gateway: cluster.gateway(),
        control: format!("http://{}", cluster.address("control-1/api")),
    };
    print::out("\nKill any process, edit any byte. Ctrl-C stops everything.\n");
    for line in farewell.lines(&services.items) {
        print::out(line);
    }
    print::out("");
    for line in honest(&status) {
        print::out(terminal::line(&line));
    }
    Ok(())
}

/// Paths and addresses of the cluster.
struct Farewell {
    /// The directory of this program, if it is not in the shell's search path.
    program: Option<PathBuf>,
    context: PathBuf,
    key: PathBuf,
    logs: PathBuf,
    /// Key file of the first member.
    member_key: PathBuf,
    gateway: String,
    control: String,
}

impl Farewell {
    /// Returns the lines to paste, each part with a comment.
    fn lines(&self, services: &[ServiceView]) -> Vec<String> {
        let mut lines = vec![
            format!("# console      {}/console", self.control),
            "#              `quorate console link` signs a browser in there, to read".to_string(),
            format!("# control API  {}/openapi.json", self.control),
            format!("# logs         {}", self.logs.display()),
            String::new(),
            "# in another terminal".to_string(),
        ];
        if let Some(directory) = &self.program {
            lines.extend(wrapped(&format!("export PATH={}:$PATH", quoted(directory))));
        }
        lines.extend(wrapped(&format!("export QUORATE_CONTEXT={}", quoted(&self.context))));
        lines.push("quorate status".into());
        lines
            .extend([String::new(), "# read and vote in a browser of this machine, as member-a".to_string()]);
        lines.extend(wrapped(&format!("quorate console --key {}", quoted(&self.member_key))));
        lines.extend([String::new(), "# any OpenAI client".to_string()]);
        lines.extend(wrapped(&format!("export OPENAI_BASE_URL={}/v1", self.gateway)));
        lines.extend(wrapped(&format!("export OPENAI_API_KEY=$(cat {})", quoted(&self.key))));
        lines.push(String::new());
        lines.extend(example(services));
        lines
    }
}

/// Returns the statements about what is simulated.
fn honest(status: &Status) -> Vec<String> {
    let mut lines = vec![
        "What is simulated here: the machines (one machine plays all of them) and the".to_string(),
        "members (three key files beside each other). Everything else is real: processes,".to_string(),
        "TLS, signatures, storage, models.".to_string(),
    ];
    lines.extend(status.simulated.iter().map(|line| format!("  {line}")));
    if !status.not_enforced.is_empty() {
        lines.push("What is not enforced here:".to_string());
        lines.extend(status.not_enforced.iter().map(|line| format!("  {line}")));
    }
    lines
}

/// Quotes a path as one word of a shell.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+,:@%".contains(c);
    if text.chars().all(plain) {
        return text;
    }
    let escaped = text.chars().flat_map(|c| "\\\"$`".contains(c).then_some('\\').into_iter().chain([c]));
    format!("\"{}\"", escaped.collect::<String>())
}

/// Wraps a command with a long word, so that a shell joins the lines again. A terminal's own line breaks
/// would stay in the copied text.
fn wrapped(command: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let mut rest: Vec<char> = command.chars().collect();
    while rest.len() > COLUMNS {
        // Before a `/`, so that no escaped character is separated from its backslash.
        let fits = COLUMNS - 1;
        let at = rest[..fits].iter().rposition(|c| *c == '/').filter(|at| *at > 0);
        let at = at.unwrap_or(if rest[fits - 1] == '\\' { fits - 1 } else { fits });
        let tail = rest.split_off(at);
        lines.push(rest.iter().collect::<String>() + "\\");
        rest = tail;
    }
    lines.push(rest.into_iter().collect());
    lines
}

/// Returns a request to an answering service, preferably one that generates text; without one, the steps to
/// deploy one.
fn example(services: &[ServiceView]) -> Vec<String> {
    let answering = services.iter().filter(|service| service.ready > 0).filter_map(manifest);
    // `false` sorts first.
    let Some(manifest) = answering.min_by_key(|manifest| manifest.task != Task::Generate) else {
        let lines = [
            "# nothing is served yet",
            "quorate model import DIR --name NAME",
            "quorate new service --model NAME > NAME.toml",
            "quorate deploy NAME.toml --wait",
        ];
        return lines.map(str::to_string).to_vec();
    };
    let model = &manifest.model.name;
    let (path, body) = match manifest.task {
        Task::Embed => ("embeddings", r#""input":"What is quorate?"}"#),
        // A model may have no chat template.
        Task::Generate => ("completions", r#""prompt":"Once upon a time","max_tokens":32}"#),
        Task::Rerank => ("rerank", r#""query":"What is quorate?","documents":["A cloud.","A cake."]}"#),
    };
    let text = format!(
        "curl -s $OPENAI_BASE_URL/{path} \\\n  -H \"Authorization: Bearer $OPENAI_API_KEY\" \\\n  \
         -H 'Content-Type: application/json' -d '{{\n  \"model\":\"{model}\",\n  {body}'"
    );
    text.lines().map(str::to_string).collect()
}

fn manifest(service: &ServiceView) -> Option<&ServiceManifest> {
    match &service.manifest {
        Manifest::Service(manifest) => Some(manifest),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::service_template;
    use protocol::Digest;

    fn service(model: &str, architecture: &str, ready: u32) -> ServiceView {
        let record = crate::testing::model_record(model, architecture);
        let name: protocol::ServiceName = model.parse().expect("a name");
        ServiceView {
            manifest: Manifest::from_toml(&service_template(&name, &record, 1, 2)).expect("valid"),
            name,
            certificate: Digest::of(b"certificate"),
            roll_out: crate::testing::complete_roll_out(),
            desired: 1,
            ready,
            ready_current: ready,
            retiring: false,
            slots: vec![],
        }
    }

    fn farewell(root: &str) -> Farewell {
        let root = Path::new(root);
        Farewell {
            program: Some(root.join("target/debug")),
            context: root.join(".quorate/demo/context.json"),
            key: root.join(".quorate/demo/api-key"),
            logs: root.join(".quorate/demo/logs"),
            member_key: root.join(".quorate/demo/members/member-a.key"),
            gateway: "http://127.0.0.1:65535".into(),
            control: "http://127.0.0.1:65534".into(),
        }
    }

    /// Returns the output of the commands in a shell in which the programs that they name only print.
    fn pasted(lines: &[String]) -> String {
        let lines = lines.join("\n");
        let script = [
            "curl() { printf '%s\\n' \"$@\"; }",
            "quorate() { :; }",
            "cat() { printf 'KEY-of-%s' \"$1\" | tr ' ' '+'; }",
            &lines,
            "echo \"$QUORATE_CONTEXT\"; echo \"$PATH\"; echo \"$OPENAI_API_KEY\"",
        ];
        let shell = std::process::Command::new("/bin/sh").arg("-c").arg(script.join("\n")).output();
        let output = shell.expect("there is a shell");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    }

    #[test]
    fn every_command_fits_80_columns_and_means_the_same_when_pasted() {
        let deep = format!("/home/{}/a name with $blanks\"/{}", "d".repeat(90), "e/".repeat(60));
        for root in ["/q", "/home/ada lovelace/quorate", deep.trim_end_matches('/')] {
            for service in [service("mine", "llama", 1), service("minilm", "bert", 1)] {
                let lines = farewell(root).lines(std::slice::from_ref(&service));
                // The lines before it are not commands.
                let at =
                    lines.iter().position(|line| line.starts_with("# in another terminal")).expect("said");
                let long: Vec<&String> =
                    lines[at..].iter().filter(|line| line.chars().count() > COLUMNS).collect();
                assert!(long.is_empty(), "{long:#?}");
                let said = pasted(&lines[at..]);
                for expected in [
                    format!("\n{root}/.quorate/demo/context.json\n"),
                    format!("\n{root}/target/debug:"),
                    format!("\nKEY-of-{}/.quorate/demo/api-key\n", root.replace(' ', "+")),
                    "http://127.0.0.1:65535/v1/".to_string(),
                ] {
                    assert!(said.contains(&expected), "{expected}\n{said}");
                }
                let body =
                    said.split("-d\n").nth(1).and_then(|rest| rest.split_once("}\n")).expect("a body").0;
                let body: serde_json::Value = serde_json::from_str(&format!("{body}}}")).expect("JSON");
                assert_eq!(body["model"], service.name.as_str());
            }
        }
        for line in example(&[]).iter().chain(&honest_lines()) {
            assert!(line.chars().count() <= COLUMNS, "{line}");
        }
    }

    fn honest_lines() -> Vec<String> {
        let limits = "cpu, memory, pids on node-1, node-2, node-3";
        let lines = honest(&status(&[limits]));
        assert!(lines.iter().any(|line| line == &format!("  {limits}")), "{lines:?}");
        assert!(!honest(&status(&[])).concat().contains("not enforced"));
        lines
    }

    fn status(not_enforced: &[&str]) -> Status {
        let not_enforced = not_enforced.iter().map(|line| (*line).to_string()).collect();
        Status { not_enforced, ..crate::testing::status() }
    }

    #[test]
    fn the_line_asks_what_really_answers() {
        let (mine, embeds) =
            (|ready| service("mine", "llama", ready), |ready| service("minilm", "bert", ready));
        for (services, expected) in [
            (vec![], "quorate model import"),
            (vec![mine(0)], "quorate model import"),
            (vec![mine(0), embeds(2)], "$OPENAI_BASE_URL/embeddings "),
            (vec![embeds(2), mine(1)], "\"model\":\"mine\",\n  \"prompt\""),
            (vec![service("judge", "bert-reranker", 1)], "$OPENAI_BASE_URL/rerank "),
        ] {
            let lines = example(&services).join("\n");
            assert!(lines.contains(expected), "{lines}");
        }
    }
}
