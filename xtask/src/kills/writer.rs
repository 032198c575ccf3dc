//! A client that writes continuously through the control API while the cluster is being killed: it grants and
//! revokes inference keys, scales a service, and makes proposals. It records the reply to each write.
//!
//! `quorate` signs the grants and revocations, and this client sends them. Most writes are sent once, so that
//! the claim of a reply `503` can be checked. Some are retried under their idempotency key until the reply is
//! final; proposals use `quorate`, which retries automatically.

use super::SplitMix64;
use super::history::{ClusterContents, KeyWrites, WriteHistory, WriteOutcome};
use super::http::{HttpOutcome, ReplicaRequest, send};
use crate::process::{command, target};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::{Duration, Instant};

/// Time limit of one request.
const REQUEST_LIMIT: Duration = Duration::from_secs(3);
/// Period in which a write is retried.
const REPEAT_LIMIT: Duration = Duration::from_secs(30);
/// Time limit within which a leader must answer after the last round.
const END_LIMIT: Duration = Duration::from_secs(60);
/// Pause between writes: the audit keeps the last 4,096 events and is read once in a hundred writes.
const WRITE_PAUSE: Duration = Duration::from_millis(10);
/// Pause while no replica answers.
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// Number of writes between two reads of the audit.
const WRITES_PER_AUDIT: u64 = 100;
/// Number of writes between two proposals, and maximum of proposals. They stay open, and the operator's token
/// may hold 16: the others are left to the demonstration, which makes its proposals with that token.
const WRITES_PER_PROPOSAL: u64 = 150;
const PROPOSALS_MAX: usize = 6;
/// Maximum number of keys that exist at the same time.
const KEYS_MAX: usize = 40;
/// Service that is scaled to its current number: the demonstration relies on that number.
const SERVICE: &str = "minilm";

/// A running writer.
pub(super) struct WriterThread {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Notes>,
}

/// Records of a writer; they outlive the rounds.
#[derive(Debug)]
pub(super) struct Notes {
    directory: PathBuf,
    /// Whether the writer scales the service as well. It does not where the demonstration must complete with
    /// its own number.
    pub(super) scales: bool,
    history: WriteHistory,
    /// Events read so far, and the number of the last one.
    events: Vec<(String, String)>,
    sequence: u64,
    /// Keys that certainly exist.
    existing: Vec<String>,
    replica: usize,
    written: u64,
    dice: SplitMix64,
}

impl WriterThread {
    /// Starts writing to the cluster in the notes' directory.
    pub(super) fn start(mut notes: Notes) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let pause = if notes.write() { WRITE_PAUSE } else { RETRY_PAUSE };
                sleep(pause);
            }
            notes
        });
        Self { stop, thread }
    }

    /// Stops after the write in progress.
    pub(super) fn stop(self) -> Result<Notes, String> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| "the writer panicked".to_string())
    }
}

impl Notes {
    pub(super) fn new(directory: &Path, seed: u64) -> Self {
        Self {
            directory: directory.to_path_buf(),
            scales: false,
            history: WriteHistory::default(),
            events: Vec::new(),
            sequence: 0,
            existing: Vec::new(),
            replica: 0,
            written: 0,
            dice: SplitMix64(seed),
        }
    }

    /// Does one write; returns false when there is no cluster to write to.
    fn write(&mut self) -> bool {
        let Some(context) = OperatorContext::read(&self.directory) else { return false };
        // Without a leader, a thousand failing writes a second would be useless.
        if !self.finds_leader(&context) {
            return false;
        }
        self.written += 1;
        if self.written.is_multiple_of(WRITES_PER_AUDIT) {
            self.read_audit(&context);
        }
        let proposes = self.written.is_multiple_of(WRITES_PER_PROPOSAL);
        if proposes && self.history.proposals.len() < PROPOSALS_MAX {
            self.propose();
        } else if self.scales && self.dice.share() < 0.1 {
            self.scale(&context);
        } else if self.existing.len() >= KEYS_MAX || self.existing.len() > 5 && self.dice.share() < 0.4 {
            self.revoke(&context);
        } else {
            self.create(&context);
        }
        true
    }

    fn create(&mut self, context: &OperatorContext) {
        let name = format!("w-{}", self.written);
        let secret = self.directory.join(format!("{name}.key"));
        let out = secret.display().to_string();
        let signed = self.signed(&["key", "issue", &name, "--valid-days", "1", "--print", "--out", &out]);
        // No request is made with the key.
        let _ = std::fs::remove_file(&secret);
        let Some(body) = signed else { return };
        let created = self.settle(context, "POST", "/v1/access/grants", &body);
        if created == WriteOutcome::Done {
            self.existing.push(name.clone());
        }
        self.history.keys.insert(name, KeyWrites { created, revoked: None });
    }

    fn revoke(&mut self, context: &OperatorContext) {
        let at = (self.dice.share() * self.existing.len() as f64) as usize;
        let name = self.existing.swap_remove(at);
        let Some(body) = self.signed(&["key", "revoke", &name, "--print"]) else {
            self.existing.push(name);
            return;
        };
        let revoked = self.settle(context, "POST", "/v1/access/revocations", &body);
        if let Some(key) = self.history.keys.get_mut(&name) {
            key.revoked = Some(revoked);
        }
    }

    fn scale(&mut self, context: &OperatorContext) {
        let path = format!("/v1/services/{SERVICE}");
        let Some(service) = self.read(context, &path) else { return };
        let Some(desired) = number_after(&service, "\"desired\":") else { return };
        let scaled =
            self.settle(context, "POST", &format!("{path}/scale"), &format!("{{\"replicas\":{desired}}}"));
        self.history.scaled.push(scaled);
    }

    /// Runs the command line of the cluster.
    fn quorate(&self, words: &[&str]) -> Option<Output> {
        let (program, context) = (target().join("debug/quorate"), self.directory.join("context.json"));
        let (program, context) = (program.display().to_string(), context.display().to_string());
        let words = [&["--context", context.as_str()][..], words].concat();
        command(&program, &words).stdin(Stdio::null()).output().ok()
    }

    /// Returns what the command line signs and prints, if a leader answers it.
    fn signed(&self, words: &[&str]) -> Option<String> {
        let output = self.quorate(words).filter(|output| output.status.success())?;
        String::from_utf8(output.stdout).ok()
    }

    /// Proposes through the command line, which retries automatically.
    fn propose(&mut self) {
        let reason = format!("writer {}", self.written);
        let words = ["retire", SERVICE, "--reason", &reason, "-o", "json"];
        let Some(output) = self.quorate(&words) else { return };
        let errors = String::from_utf8_lossy(&output.stderr);
        let outcome = match output.status.success() {
            true => WriteOutcome::Done,
            false if errors.contains("outcome-unknown") => WriteOutcome::Unknown,
            false => WriteOutcome::NotDone,
        };
        self.history.proposals.insert(reason, outcome);
    }

    /// Sends a write, once or until the reply is final, and returns its known outcome.
    fn settle(&mut self, context: &OperatorContext, method: &str, path: &str, body: &str) -> WriteOutcome {
        let key = format!("{:016x}{:016x}", self.dice.draw(), self.dice.draw());
        let repeats = self.dice.share() < 0.3;
        let (deadline, mut unknown) = (Instant::now() + REPEAT_LIMIT, false);
        loop {
            let request = ReplicaRequest { method, path, token: &context.token, key: Some(&key), body };
            let outcome =
                send(&context.replicas[self.replica % context.replicas.len()], &request, REQUEST_LIMIT);
            self.follow(context, &outcome);
            match outcome {
                HttpOutcome::Answer { status: 200..300, .. } => return WriteOutcome::Done,
                HttpOutcome::NotSent | HttpOutcome::Answer { status: 421 | 503 | 507, .. } => {}
                HttpOutcome::Lost | HttpOutcome::Answer { status: 504, .. } => unknown = true,
                HttpOutcome::Answer { status, body, .. } => {
                    self.refused(path, status, &body);
                    return if unknown { WriteOutcome::Unknown } else { WriteOutcome::NotDone };
                }
            }
            if !repeats || Instant::now() > deadline {
                return if unknown { WriteOutcome::Unknown } else { WriteOutcome::NotDone };
            }
            sleep(RETRY_PAUSE);
        }
    }

    /// Records a refusal that an earlier copy of the same write would explain: under its key, a retry must
    /// get the first reply.
    fn refused(&mut self, path: &str, status: u16, body: &str) {
        if ["name-taken", "grant-not-found", "grant-revoked", "idempotency-key-reused"]
            .iter()
            .any(|code| body.contains(code))
        {
            self.history.contradictions.push(format!("{path} was answered {status}: {body}"));
        }
    }

    /// Selects the replica that is reported as leader, or the next one.
    fn follow(&mut self, context: &OperatorContext, outcome: &HttpOutcome) {
        let hint = match outcome {
            HttpOutcome::Answer { status: 200..300, .. } => return,
            HttpOutcome::Answer { leader, .. } => leader.as_ref(),
            _ => None,
        };
        let named = hint.and_then(|leader| context.replicas.iter().position(|replica| replica == leader));
        self.replica = named.unwrap_or((self.replica + 1) % context.replicas.len());
    }

    fn finds_leader(&mut self, context: &OperatorContext) -> bool {
        (0..2 * context.replicas.len())
            .any(|_| self.try_read(context, "/v1/access/grants?page_size=1").is_some())
    }

    fn try_read(&mut self, context: &OperatorContext, path: &str) -> Option<String> {
        let request = ReplicaRequest { method: "GET", path, token: &context.token, key: None, body: "" };
        let outcome = send(&context.replicas[self.replica % context.replicas.len()], &request, REQUEST_LIMIT);
        self.follow(context, &outcome);
        match outcome {
            HttpOutcome::Answer { status: 200, body, .. } => Some(body),
            _ => None,
        }
    }

    fn read(&mut self, context: &OperatorContext, path: &str) -> Option<String> {
        (0..2 * context.replicas.len()).find_map(|_| self.try_read(context, path))
    }

    /// Reads new audit events, if a leader serves them; returns whether there were any.
    fn read_audit(&mut self, context: &OperatorContext) -> Option<bool> {
        let page = self.read(context, &format!("/v1/events?after={}", self.sequence))?;
        let events = events_in(&page);
        if let Some((first, ..)) = events.first().filter(|(first, ..)| *first != self.sequence + 1) {
            let message = format!("the audit continues at {first} after {}", self.sequence);
            self.history.contradictions.push(message);
        }
        self.sequence = events.last().map_or(self.sequence, |(sequence, ..)| *sequence);
        let new = !events.is_empty();
        self.events.extend(events.into_iter().map(|(_, action, subject)| (action, subject)));
        Some(new)
    }

    /// Retries until a leader serves the request: the cluster runs, and only a busy machine delays it.
    fn retry<T>(&mut self, what: &str, mut read: impl FnMut(&mut Self) -> Option<T>) -> Result<T, String> {
        let deadline = Instant::now() + END_LIMIT;
        loop {
            match read(self) {
                Some(found) => return Ok(found),
                None if Instant::now() > deadline => {
                    let limit = END_LIMIT.as_secs();
                    return Err(format!("no replica served {what} within {limit} s"));
                }
                None => sleep(RETRY_PAUSE),
            }
        }
    }

    /// Returns every page of a list.
    fn read_list(&mut self, context: &OperatorContext, list: &str) -> Result<String, String> {
        let (mut pages, mut path) = (String::new(), list.to_string());
        loop {
            let page = self.retry(list, |notes| notes.read(context, &path))?;
            pages.push_str(&page);
            let Some(token) = texts_after(&page, "\"next_page_token\":\"").pop() else { return Ok(pages) };
            path = format!("{list}?page_token={token}");
        }
    }

    /// Compares the contents of the cluster with the history, and describes the result.
    pub(super) fn judge(mut self) -> Result<String, String> {
        let context = OperatorContext::read(&self.directory).ok_or("the cluster has no context")?;
        while self.retry("the audit", |notes| notes.read_audit(&context))? {}
        let grants = self.read_list(&context, "/v1/access/grants")?;
        let proposals = self.read_list(&context, "/v1/proposals")?;
        let events = std::mem::take(&mut self.events);
        let found = ClusterContents {
            keys: texts_after(&grants, "\"holder\":\""),
            proposals: texts_after(&proposals, "\"reason\":\""),
            events,
        };
        let violations = self.history.violations(&found);
        let count = |outcome| self.history.count(outcome);
        let (done, refused, unknown) =
            (count(WriteOutcome::Done), count(WriteOutcome::NotDone), count(WriteOutcome::Unknown));
        let summary = format!(
            "{done} writes acknowledged, {refused} refused as not done, {unknown} unknown, {} violations",
            violations.len()
        );
        if !violations.is_empty() {
            return Err(format!("{summary}\n{}", violations.join("\n")));
        }
        if done == 0 {
            return Err(format!("{summary}: a round without a write proves nothing"));
        }
        Ok(summary)
    }
}

/// Addresses and token of the cluster.
pub(super) struct OperatorContext {
    pub(super) replicas: Vec<String>,
    token: String,
}

impl OperatorContext {
    /// Reads them from the operator's context, if it exists.
    pub(super) fn read(directory: &Path) -> Option<Self> {
        let context = std::fs::read_to_string(directory.join("context.json")).ok()?;
        let list = context.split("\"control\":").nth(1)?.split(']').next()?;
        let replicas: Vec<String> =
            list.split('"').filter(|text| text.starts_with("http://")).map(str::to_string).collect();
        let file = texts_after(&context, "\"token_file\": \"")
            .pop()
            .or_else(|| texts_after(&context, "\"token_file\":\"").pop())?;
        let token = std::fs::read_to_string(directory.join(file)).ok()?.trim().to_string();
        (!replicas.is_empty() && !token.is_empty()).then_some(Self { replicas, token })
    }
}

/// Returns number, action and subject of each event of a page.
fn events_in(page: &str) -> Vec<(u64, String, String)> {
    let event = |text: &str| {
        let sequence = number_after(text, "")?;
        Some((
            sequence,
            texts_after(text, "\"action\":\"").pop()?,
            texts_after(text, "\"subject\":\"").pop()?,
        ))
    };
    page.split("{\"sequence\":").skip(1).filter_map(event).collect()
}

/// Returns the text after each occurrence of `mark`, up to a quotation mark.
fn texts_after(text: &str, mark: &str) -> Vec<String> {
    text.split(mark).skip(1).filter_map(|rest| rest.split('"').next()).map(str::to_string).collect()
}

/// Returns the number that follows `mark`.
fn number_after(text: &str, mark: &str) -> Option<u64> {
    let rest = if mark.is_empty() { text } else { text.split(mark).nth(1)? };
    let digits = rest.find(|c: char| !c.is_ascii_digit()).map_or(rest, |end| &rest[..end]);
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_from_a_page_of_the_api() {
        let page = concat!(
            r#"{"items":[{"sequence":7,"at":1,"actor":"token/up","action":"issue-key","#,
            r#""subject":"key/w-1","detail":""},"#,
            r#" {"sequence":8,"at":1,"actor":"scheduler","action":"lead","#,
            r#""subject":"replica/2","detail":"{"}]}"#,
        );
        let expected = [(7, "issue-key", "key/w-1"), (8, "lead", "replica/2")];
        let expected =
            expected.map(|(number, action, subject)| (number, action.to_string(), subject.to_string()));
        assert_eq!(events_in(page), expected);
        assert_eq!(number_after(r#"{"name":"minilm","desired":12,"#, "\"desired\":"), Some(12));
    }
}
