//! Golden tests of a circle's decisions over time, as text: `> who: what` with the outcome below it.
//! `REFRESH_GOLDEN=1 cargo test -p human-chain` rewrites the outcomes, for review as a diff.
//!
//! A second verifier, which starts at the genesis and replays, also verifies every decided line.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support::{
    NOW, approve, deploy, forget, genesis, member, name, node, policy, quorum, retire, set_members, signed,
    suspend, try_propose,
};
use human_chain::{CircleState, certify, describe, least_approvals, satisfied, verify, verify_replay};
use protocol::MemberId;
use protocol::governance::{Certificate, Change, NodeRole, SignedGenesis};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

struct RecordedHistory {
    genesis: SignedGenesis,
    state: CircleState,
    history: Vec<Certificate>,
    /// Certificates kept for later, by name.
    kept: BTreeMap<String, Certificate>,
}

impl RecordedHistory {
    fn found(members: &[&str], routine: &str, sensitive: &str) -> Result<Self, String> {
        let mut founding = genesis();
        founding.members = members.iter().map(|who| member(who)).collect();
        founding.access.grantors = founding.members.iter().map(|member| member.id.clone()).collect();
        founding.policy = policy(routine, sensitive);
        let genesis = signed(founding);
        let state =
            CircleState::found(&genesis, None).map_err(|error| format!("{}: {error}", error.code()))?;
        Ok(Self { genesis, state, history: vec![], kept: BTreeMap::new() })
    }

    fn run(&mut self, line: &str) -> String {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["keep", label, ..] => {
                let (who, what) = line.split_once(": ").unwrap();
                let who: Vec<&str> = who.split_whitespace().skip(2).collect();
                match try_propose(&self.state, change(&self.state, what)) {
                    Ok(proposal) => drop(self.kept.insert(label.to_string(), approve(&proposal, &who))),
                    Err(error) => return format!("{}: {error}", error.code()),
                }
                "kept".into()
            }
            ["use", label] => {
                let certificate = self.kept[*label].clone();
                self.admit(&certificate)
            }
            ["show"] => self.show(),
            _ => {
                let (who, what) = line.split_once(": ").unwrap();
                let who: Vec<&str> = who.split_whitespace().collect();
                match try_propose(&self.state, change(&self.state, what)) {
                    Err(error) => format!("{}: {error}", error.code()),
                    Ok(proposal) => {
                        let certificate = approve(&proposal, &who);
                        let certified = certify(&self.state, &proposal, &certificate.ballots);
                        let outcome = self.admit(&certificate);
                        assert_eq!(certified.is_ok(), outcome.starts_with("in force"), "{line}: {outcome}");
                        assert!(certified.is_err() || certified == Ok(certificate));
                        outcome
                    }
                }
            }
        }
    }

    fn admit(&mut self, certificate: &Certificate) -> String {
        let before = self.state.clone();
        let outcome = verify(&self.state, certificate, NOW).and_then(|approved| self.state.advance(approved));
        assert_eq!(self.state.check_invariants(), Ok(()));
        match outcome {
            Err(error) => {
                assert_eq!(self.state, before, "what is refused leaves no trace");
                format!("{}: {error}", error.code())
            }
            Ok(()) => {
                self.history.push(certificate.clone());
                let replayed = CircleState::replay(&self.genesis, None, &self.history);
                assert_eq!(replayed.as_ref(), Ok(&self.state), "a second reader sees the same");
                assert!(verify_replay(&self.state, certificate).is_err(), "it works once");
                let subject = &certificate.proposal.subjects[0].subject;
                let version = self.state.subject(subject).version;
                format!("in force: {subject} at version {version}, epoch {}", self.state.epoch())
            }
        }
    }

    fn show(&self) -> String {
        let members: Vec<String> = self.state.members().map(|member| member.id.to_string()).collect();
        let mut text = format!("members: {}\n", members.join(" "));
        for (class, rule) in &self.state.policy().quorums {
            writeln!(text, "{class:?}: {}, at least {}", describe(rule), least_approvals(rule)).unwrap();
        }
        for id in self.state.suspended().keys() {
            writeln!(text, "suspended: {id}").unwrap();
        }
        let nodes: Vec<&str> = self.state.nodes().map(|node| node.name.as_str()).collect();
        writeln!(text, "nodes: {}", nodes.join(" ")).unwrap();
        for service in self.state.services() {
            let range = service.manifest.replicas;
            let name = &service.manifest.name;
            writeln!(text, "{name}: {}..{} at version {}", range.min, range.max, service.version).unwrap();
        }
        for retired in self.state.retired() {
            writeln!(text, "retired: {}", retired.last.manifest.name).unwrap();
        }
        for forgotten in self.state.forgotten_models() {
            let (name, root) = (&forgotten.model.name, forgotten.model.root.short());
            writeln!(text, "forgotten: {name} ({root}) at {}", forgotten.ends_at().0 - NOW.0).unwrap();
        }
        text
    }
}

fn change(state: &CircleState, text: &str) -> Change {
    let words: Vec<&str> = text.split_whitespace().collect();
    match words.as_slice() {
        ["deploy", max] => deploy(max.parse().unwrap()),
        ["retire", service] => retire(service),
        ["admit", who] => Change::AdmitNode(Box::new(node(who, &[NodeRole::Worker]))),
        ["remove", who] => Change::RemoveNode { node: name(who) },
        ["forget", model, grace] => forget(model, grace.parse().unwrap()),
        ["suspend", who] => suspend(who),
        ["members", ..] => {
            let parts: Vec<&str> = text.strip_prefix("members ").unwrap().split(" / ").collect();
            let members = parts[0].split_whitespace().map(member).collect();
            set_members(state, members, policy(parts[1], parts[2]))
        }
        other => panic!("no such change: {other:?}"),
    }
}

fn replay(text: &str) -> String {
    let mut history: Option<RecordedHistory> = None;
    let mut transcript = String::new();
    for line in text.lines() {
        let Some(command) = line.strip_prefix("> ") else {
            if !line.starts_with("    ") {
                writeln!(transcript, "{line}").unwrap();
            }
            continue;
        };
        let answer = match command.strip_prefix("found ") {
            Some(rest) => {
                let parts: Vec<&str> = rest.split(" / ").collect();
                match RecordedHistory::found(
                    &parts[0].split_whitespace().collect::<Vec<_>>(),
                    parts[1],
                    parts[2],
                ) {
                    Ok(founded) => {
                        history = Some(founded);
                        "founded".to_string()
                    }
                    Err(refusal) => refusal,
                }
            }
            None => history.as_mut().expect("a circle is founded first").run(command),
        };
        writeln!(transcript, "> {command}").unwrap();
        for line in answer.lines() {
            writeln!(transcript, "    {line}").unwrap();
        }
    }
    transcript
}

fn golden(path: &str, replay: impl Fn(&str) -> String) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/chronicles").join(path);
    let written = std::fs::read_to_string(&path).unwrap();
    let transcript = replay(&written);
    if std::env::var_os("REFRESH_GOLDEN").is_some() {
        let mut file = std::fs::OpenOptions::new().write(true).truncate(true).open(&path).unwrap();
        std::io::Write::write_all(&mut file, transcript.as_bytes()).unwrap();
        return;
    }
    assert_eq!(transcript, written, "{}", path.display());
}

#[test]
fn circles_decide_as_written() {
    for path in ["services.txt", "members.txt", "machines.txt", "models.txt"] {
        golden(path, replay);
    }
}

/// Each line has a rule. The outcome states whether a circle may have it, its minimum of approvals, and the
/// minimal groups.
#[test]
fn rules_are_reached_by_the_groups_they_name() {
    golden("rules.txt", |text| {
        let mut transcript = String::new();
        for line in text.lines() {
            let Some((rule, _)) = line.split_once(" | ").filter(|_| !line.starts_with('#')) else {
                writeln!(transcript, "{line}").unwrap();
                continue;
            };
            let all = ["a", "b", "c", "d", "e"];
            let verdict = match RecordedHistory::found(&all, rule, rule) {
                Err(refusal) => refusal,
                Ok(_) => {
                    let read = quorum(rule);
                    let reaches = |who: &[&str]| {
                        let ids: BTreeSet<MemberId> = who.iter().map(|who| name(who)).collect();
                        satisfied(&read, &ids)
                    };
                    let groups: Vec<String> = (1..32usize)
                        .map(|bits| {
                            (0..5).filter(|at| bits >> at & 1 == 1).map(|at| all[at]).collect::<Vec<_>>()
                        })
                        .filter(|who| reaches(who) && (0..who.len()).all(|at| !reaches(&without(who, at))))
                        .map(|who| who.concat())
                        .collect();
                    format!("at least {}: {}", least_approvals(&read), groups.join(" "))
                }
            };
            writeln!(transcript, "{rule} | {verdict}").unwrap();
        }
        transcript
    });
}

fn without<'a>(who: &[&'a str], at: usize) -> Vec<&'a str> {
    who.iter().enumerate().filter(|(i, _)| *i != at).map(|(_, who)| *who).collect()
}
