//! One HTTP request to a control replica of the demonstration: plain HTTP/1.1 on loopback, one connection
//! each. The caller thus learns whether a request was sent and whether its reply is complete.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Maximum length of a reply, in bytes.
const ANSWER_BYTES_MAX: u64 = 64 << 20;

pub(super) struct ReplicaRequest<'a> {
    pub(super) method: &'a str,
    pub(super) path: &'a str,
    pub(super) token: &'a str,
    pub(super) key: Option<&'a str>,
    pub(super) body: &'a str,
}

/// Result of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum HttpOutcome {
    /// A complete reply.
    Answer {
        status: u16,
        /// Base URL of the leader, if the replica does not lead and knows the leader.
        leader: Option<String>,
        body: String,
    },
    /// No connection could be opened.
    NotSent,
    /// The request was sent, or part of it, and no complete reply came in time.
    Lost,
}

/// Sends a request to the replica at this base URL.
pub(super) fn send(base: &str, request: &ReplicaRequest, limit: Duration) -> HttpOutcome {
    let host = base.trim_start_matches("http://");
    let connected =
        host.parse::<SocketAddr>().ok().and_then(|to| TcpStream::connect_timeout(&to, limit).ok());
    match connected {
        None => HttpOutcome::NotSent,
        Some(stream) => exchange(stream, host, request, limit).unwrap_or(HttpOutcome::Lost),
    }
}

fn exchange(
    mut stream: TcpStream,
    host: &str,
    request: &ReplicaRequest,
    limit: Duration,
) -> Option<HttpOutcome> {
    stream.set_read_timeout(Some(limit)).ok()?;
    stream.set_write_timeout(Some(limit)).ok()?;
    let ReplicaRequest { method, path, token, key, body } = request;
    let key = key.map(|key| format!("idempotency-key: {key}\r\n")).unwrap_or_default();
    let text = format!(
        "{method} {path} HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {token}\r\n{key}\
         content-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(text.as_bytes()).ok()?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).ok()?;
    parse(&String::from_utf8_lossy(&answer))
}

/// Parses a reply, if it is complete.
fn parse(answer: &str) -> Option<HttpOutcome> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let mut lines = head.lines();
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let headers: Vec<(String, &str)> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_lowercase(), value))
        .collect();
    let value = |name: &str| headers.iter().find(|(known, _)| known == name).map(|(_, value)| *value);
    let length: usize = value("content-length")?.parse().ok()?;
    let leader = value("quorate-leader").map(str::to_string);
    (body.len() == length).then(|| HttpOutcome::Answer { status, leader, body: body.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_counts_when_it_is_whole() {
        let whole =
            "HTTP/1.1 421 Misdirected\r\nQuorate-Leader: http://1.2.3.4:5\r\ncontent-length: 2\r\n\r\n{}";
        let leader = Some("http://1.2.3.4:5".to_string());
        assert_eq!(parse(whole), Some(HttpOutcome::Answer { status: 421, leader, body: "{}".into() }));
        for length in 0..whole.len() {
            assert_eq!(parse(&whole[..length]), None, "cut at {length}");
        }
    }

    #[test]
    fn a_closed_port_gets_no_request_and_a_silent_one_loses_it() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let base = format!("http://{}", listener.local_addr().expect("bound"));
        let request = ReplicaRequest { method: "GET", path: "/", token: "", key: None, body: "" };
        assert_eq!(
            send(&base, &request, Duration::from_millis(50)),
            HttpOutcome::Lost,
            "it accepts and never replies"
        );
        drop(listener);
        assert_eq!(send(&base, &request, Duration::from_secs(5)), HttpOutcome::NotSent);
    }
}
