//! The verdict of `quorate status`: the leader's view of the cluster, and the control replicas that answer.
//!
//! Reachability is judged on this machine and not taken from any replica. A replica that hangs reports
//! nothing, and if two of three hang, no replica could report it. All replicas are queried concurrently. The
//! verdict is ready as soon as the slowest has answered or timed out.
//!
//! Halts need no leader. Without one, the report shows those that the answering replicas hold; their
//! signatures are not verified here, and `quorate halts` does that once a leader serves the history.

use crate::client::{ClientError, ControlClient, Reachability, ReplicaProbe};
use crate::terminal::line;
use anyhow::Result;
use futures::future::join_all;
use human_chain::{describe_halt, describe_scope};
use protocol::HaltId;
use protocol::api::{Finding, Status};
use protocol::display::counted;
use protocol::halt::{Halt, SignedHalt};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::pin::pin;
use std::time::Duration;
use tokio::time::{Instant, timeout, timeout_at};

/// Timeout of one replica. Together with the start-up time of this program it stays below a second.
const PROBE_TIMEOUT: Duration = Duration::from_millis(800);
/// Time to wait for the leader's view while a replica is silent; the silence is worth reporting without it.
const VIEW_TIMEOUT: Duration = Duration::from_millis(900);
/// Time to wait for the leader's view while every replica answers: one of them will be elected soon.
const ELECTION_TIMEOUT: Duration = Duration::from_millis(2500);

/// Most halts that are named without a leader, each in a finding of its own.
const HALTS_SHOWN: usize = 16;

/// Health of the cluster, as the exit status encodes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ClusterHealth {
    Healthy = 0,
    Degraded = 1,
    /// No quorum, or no view from a leader.
    Unknown = 2,
}

/// The report that `quorate status` prints.
#[derive(Debug, Clone)]
pub(super) struct Report {
    health: ClusterHealth,
    summary: String,
    findings: Vec<Finding>,
    control: Vec<ControlState>,
    /// The leader's view, if there is one.
    status: Option<Status>,
}

/// State of one control replica.
#[derive(Debug, Clone)]
struct ControlState {
    /// `control-2`, or the URL if no replica reports the number.
    name: String,
    url: String,
    /// Reason why it counts as silent.
    silence: Option<String>,
}

/// Queries every replica for reachability and the leader for the state of the cluster, concurrently.
///
/// # Errors
/// Returns an error if the API refuses to report the status.
pub(super) async fn query(client: &ControlClient) -> Result<Report, ClientError> {
    let began = Instant::now();
    let mut probed = pin!(client.probe_all(PROBE_TIMEOUT));
    let mut viewed = pin!(client.get::<Status>("/v1/status"));
    let mut halted = pin!(halts_held(client));
    let (mut view, mut halts) = (None, None);
    let probes = loop {
        tokio::select! {
            probes = &mut probed => break probes,
            status = &mut viewed, if view.is_none() => view = Some(status),
            held = &mut halted, if halts.is_none() => halts = Some(held),
        }
    };
    if view.is_none() && ReplicaProbe::have_quorum(&probes) {
        let silent = probes.iter().any(|probe| !probe.answers());
        let limit = if silent { VIEW_TIMEOUT } else { ELECTION_TIMEOUT };
        view = timeout_at(began + limit, viewed).await.ok();
    }
    let mut report = assess(&probes, view)?;
    if report.status.is_none() {
        let held = match halts {
            Some(held) => held,
            None => halted.await,
        };
        report.findings.extend(halt_findings(&held));
    }
    Ok(report)
}

/// Returns the halts that the replicas hold, each with the number of replicas that show it. A replica that
/// does not answer in time shows none.
async fn halts_held(client: &ControlClient) -> BTreeMap<HaltId, (Halt, u64)> {
    let each = client.each();
    let asked =
        each.iter().map(|(_, replica)| timeout(PROBE_TIMEOUT, replica.list::<SignedHalt>("/v1/halts")));
    let mut held = BTreeMap::new();
    for halts in join_all(asked).await.into_iter().filter_map(|answer| answer.ok()?.ok()) {
        for signed in halts {
            held.entry(signed.halt.id()).or_insert((signed.halt, 0)).1 += 1;
        }
    }
    held
}

fn halt_findings(held: &BTreeMap<HaltId, (Halt, u64)>) -> Vec<Finding> {
    let of_halt = |(halt, replicas): &(Halt, u64)| Finding {
        message: format!(
            "{} is {}; {} it, and its signature is not verified here",
            describe_scope(&halt.scope),
            describe_halt(halt),
            if *replicas == 1 { "1 replica holds".into() } else { format!("{replicas} replicas hold") },
        ),
        next: "quorate halts".into(),
    };
    let mut findings: Vec<Finding> = held.values().take(HALTS_SHOWN).map(of_halt).collect();
    if held.len() > HALTS_SHOWN {
        let message =
            format!("the replicas hold {}", counted((held.len() - HALTS_SHOWN) as u64, "more halt"));
        findings.push(Finding { message, next: "quorate halts".into() });
    }
    findings
}

fn assess(probes: &[ReplicaProbe], view: Option<Result<Status, ClientError>>) -> Result<Report, ClientError> {
    let control: Vec<ControlState> = probes.iter().map(|probe| describe(probe, probes)).collect();
    if !ReplicaProbe::have_quorum(probes) {
        return Ok(without_quorum(control));
    }
    match view {
        Some(Ok(status)) => Ok(with_view(control, status)),
        None | Some(Err(ClientError::Unreachable(_))) => Ok(without_leader(control)),
        Some(Err(error)) => Err(error),
    }
}

fn describe(probe: &ReplicaProbe, all: &[ReplicaProbe]) -> ControlState {
    let views = all.iter().filter_map(|probe| match &probe.reachability {
        Reachability::Answers(Some(view)) => Some(view),
        _ => None,
    });
    let url = probe.url.trim_end_matches('/');
    let known = views.flat_map(|view| &view.replicas).find(|replica| replica.api == url);
    let silence = match &probe.reachability {
        Reachability::Answers(_) => None,
        Reachability::Silent(reason) => Some(reason.clone()),
    };
    let name = known.map_or_else(|| probe.url.clone(), |replica| format!("control-{}", replica.id));
    ControlState { name, url: probe.url.clone(), silence }
}

fn without_quorum(control: Vec<ControlState>) -> Report {
    let silent = names(&control, |control| control.silence.is_some());
    let answering = names(&control, |control| control.silence.is_none());
    let summary = match answering.is_empty() {
        true => format!("no control replica answers: {silent}"),
        false => format!("quorum lost: {silent}; {answering} alone cannot commit changes or renew leases"),
    };
    let findings = control.iter().filter_map(silence_finding).collect();
    Report { health: ClusterHealth::Unknown, summary, findings, control, status: None }
}

fn without_leader(control: Vec<ControlState>) -> Report {
    let silent = names(&control, |control| control.silence.is_some());
    let reason = if silent.is_empty() { "all replicas answer".to_string() } else { silent };
    let summary = format!("no control replica leads at the moment ({reason}); changes wait for an election");
    let mut findings: Vec<Finding> = control.iter().filter_map(silence_finding).collect();
    findings.push(Finding {
        message: "without a leader, the state of nodes and services is unknown".into(),
        next: "quorate status, in a few seconds".into(),
    });
    Report { health: ClusterHealth::Unknown, summary, findings, control, status: None }
}

fn with_view(control: Vec<ControlState>, status: Status) -> Report {
    // The leader names the replicas that do not answer it; those that only this machine cannot reach are
    // added.
    let known_to_leader = |control: &ControlState| {
        status.replicas_silent.iter().any(|silent| control.name == format!("control-{silent}"))
    };
    let unknown = |control: &&ControlState| !known_to_leader(control);
    let mut findings: Vec<Finding> = control.iter().filter(unknown).filter_map(silence_finding).collect();
    let silent = names(&control, |control| control.silence.is_some());
    let summary = match (silent.is_empty(), status.healthy) {
        (true, _) => status.summary.clone(),
        // The replica answers the leader, or the leader has not noticed its silence yet.
        (false, true) => format!("{silent}; the leader reports: {}", status.summary),
        (false, false) => format!("{silent}; {}", status.summary),
    };
    findings.extend(status.findings.iter().cloned());
    let healthy = status.healthy && control.iter().all(|control| control.silence.is_none());
    let health = if healthy { ClusterHealth::Healthy } else { ClusterHealth::Degraded };
    Report { health, summary, findings, control, status: Some(status) }
}

/// Returns `control-1 does not answer` or `control-2 and control-3 do not answer`; for answering replicas,
/// the names alone.
fn names(control: &[ControlState], wanted: impl Fn(&ControlState) -> bool) -> String {
    let chosen: Vec<&ControlState> = control.iter().filter(|control| wanted(control)).collect();
    let all = chosen.iter().map(|control| control.name.as_str()).collect::<Vec<_>>().join(" and ");
    match chosen.as_slice() {
        [] => String::new(),
        [one] if one.silence.is_some() => format!("{all} does not answer"),
        [first, ..] if first.silence.is_some() => format!("{all} do not answer"),
        _ => all,
    }
}

fn silence_finding(control: &ControlState) -> Option<Finding> {
    let reason = control.silence.as_ref()?;
    let message = match control.name == control.url {
        true => format!("{} does not answer: {reason}", control.url),
        false => format!("{} ({}) does not answer: {reason}", control.name, control.url),
    };
    Some(Finding {
        message,
        next: "check its process and its log, then restart it: quorate control run --help".into(),
    })
}

impl Report {
    pub(super) fn exit_code(&self) -> u8 {
        self.health as u8
    }

    /// Returns the leader's view, if there is one, together with the verdict and the replicas.
    pub(super) fn to_json(&self) -> Value {
        let mut value =
            self.status.as_ref().map_or_else(|| json!({ "leader": null }), |status| json!(status));
        let control = |control: &ControlState| {
            let answers = control.silence.is_none();
            json!({ "name": control.name, "url": control.url, "answers": answers })
        };
        value["healthy"] = json!(self.health == ClusterHealth::Healthy);
        value["summary"] = json!(self.summary);
        value["findings"] = json!(self.findings);
        value["control"] = self.control.iter().map(control).collect();
        value
    }

    pub(super) fn to_text(&self) -> String {
        let mut text = format!("{}\n", line(&self.summary));
        for finding in &self.findings {
            text.push_str(&format!("  {}\n    next: {}\n", line(&finding.message), line(&finding.next)));
        }
        for simulated in self.status.iter().flat_map(|status| &status.simulated) {
            text.push_str(&format!("  simulated: {}\n", line(simulated)));
        }
        for limits in self.status.iter().flat_map(|status| &status.not_enforced) {
            text.push_str(&format!("  not enforced: {}\n", line(limits)));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::simulated::{Does, SimulatedReplicas, url};

    const LEADS: Does = Does::Leads(Duration::ZERO);
    const SECOND: Duration = Duration::from_secs(1);

    /// Returns the exit status, the report and the elapsed simulated time.
    async fn status(replicas: Vec<Does>) -> (u8, Report, Duration) {
        let (client, world) = SimulatedReplicas::client(replicas);
        let report = query(&client).await.expect("a report");
        (report.exit_code(), report, world.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn a_healthy_cluster_is_reported_at_once() {
        let (code, report, took) = status(vec![Does::Follows(Some(1)), LEADS, Does::Follows(Some(1))]).await;
        assert_eq!((code, took), (0, Duration::ZERO));
        assert_eq!(report.summary, "all is well; 2 services, 3 of 3 nodes alive");
        let json = report.to_json();
        assert_eq!(
            (&json["healthy"], &json["nodes_alive"], &json["leader"]),
            (&json!(true), &json!(3), &json!(1))
        );
        assert_eq!(json["control"][2], json!({"name": "control-3", "url": url(2), "answers": true}));
    }

    #[tokio::test(start_paused = true)]
    async fn one_silent_replica_is_named_within_a_second() {
        for silent in [Does::Hangs, Does::IsDead] {
            for index in 0..3 {
                let mut replicas = vec![Does::Follows(Some((index + 1) % 3)); 3];
                (replicas[index], replicas[(index + 1) % 3]) = (silent.clone(), LEADS);
                let (code, report, took) = status(replicas).await;
                assert_eq!(code, 1, "{}", report.summary);
                assert!(took < SECOND, "{took:?}");
                let name = format!("control-{}", index + 1);
                let said = "all is well; 2 services, 3 of 3 nodes alive";
                let expected = format!("{name} does not answer; the leader reports: {said}");
                assert_eq!(report.summary, expected);
                assert!(report.findings[0].message.starts_with(&format!("{name} ({})", url(index))));
                let json = report.to_json();
                assert_eq!(
                    (&json["healthy"], &json["control"][index]["answers"]),
                    (&json!(false), &json!(false))
                );
                assert_eq!(json["nodes"], 3, "what the leader says of the rest is there");
            }
        }
    }

    /// The leader hangs, and the others have not elected a new one yet.
    #[tokio::test(start_paused = true)]
    async fn a_leader_that_has_just_hung_is_named_within_a_second() {
        let (code, report, took) =
            status(vec![Does::Hangs, Does::Follows(Some(0)), Does::Follows(Some(0))]).await;
        assert!(code == 2 && took < SECOND, "{code} after {took:?}");
        assert!(
            report.summary.contains("no control replica leads at the moment (control-1 does not answer)")
        );
    }

    #[tokio::test(start_paused = true)]
    async fn two_silent_replicas_of_three_are_a_lost_quorum_within_three_seconds() {
        for alive in [Does::Follows(None), Does::Leads(30 * SECOND), Does::Refuses(503, "no-leader"), LEADS] {
            let (code, report, took) = status(vec![alive, Does::Hangs, Does::Hangs]).await;
            assert!(code == 2 && took <= 3 * SECOND, "{code} after {took:?}");
            let expected =
                "quorum lost: control-2 and control-3 do not answer; control-1 alone cannot commit";
            // A replica that is slow to report its number counts as silent too.
            if report.control[0].silence.is_none() {
                assert!(report.summary.starts_with(expected), "{}", report.summary);
            }
            assert_eq!(report.to_json()["leader"], Value::Null);
        }
        let (code, report, took) = status(vec![Does::IsDead, Does::Hangs, Does::IsDead]).await;
        assert!(code == 2 && took <= 3 * SECOND);
        assert!(report.summary.starts_with("no control replica answers: "), "{}", report.summary);
        assert_eq!(report.findings.len(), 3);
    }

    /// A halt needs no leader to be taken, and none to be seen.
    #[tokio::test(start_paused = true)]
    async fn halts_are_shown_without_a_leader() {
        let halt = Halt {
            circle: protocol::CircleId(protocol::Digest::of(b"circle")),
            member: "alice".parse().expect("a name"),
            signer: protocol::PublicKey([1; 32]),
            scope: protocol::halt::HaltScope::Service("chat".parse().expect("a name")),
            reason: "smoke\u{1b}[2J".into(),
            issued_at: protocol::Millis(5),
            nonce: protocol::Digest::of(b"1"),
        };
        let signature = protocol::halt::HaltSignature::Hybrid(crate::testing::hybrid_signature());
        let signed = SignedHalt { halt: halt.clone(), signature };
        let followers = || vec![Does::Follows(None), Does::Follows(None), Does::Hangs];
        for replicas in [followers(), vec![Does::Follows(None), Does::Hangs, Does::IsDead]] {
            let holding = replicas.iter().filter(|does| matches!(does, Does::Follows(_))).count();
            let (client, world) = SimulatedReplicas::client(replicas);
            world.hold(signed.clone());
            let report = query(&client).await.expect("a report");
            assert!(report.exit_code() == 2 && world.elapsed() < SECOND, "{:?}", world.elapsed());
            let shown = format!("the service chat is {}; {holding} replica", describe_halt(&halt));
            let found = report.findings.iter().filter(|finding| finding.message.starts_with(&shown)).count();
            assert_eq!(found, 1, "{:?}", report.findings);
            assert!(!report.to_text().contains('\u{1b}'));
            assert!(report.to_json()["findings"].to_string().contains("not verified here"));
        }
        // With a leader, its own verified list is shown, and this one is not.
        let (client, world) = SimulatedReplicas::client(vec![Does::Follows(Some(1)), LEADS]);
        world.hold(signed);
        assert!(query(&client).await.expect("a report").findings.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn an_election_is_waited_for_while_every_replica_answers() {
        let elected = Does::Until(2 * SECOND, Box::new((Does::Follows(None), LEADS)));
        let (code, _, took) = status(vec![Does::Follows(None), elected, Does::Follows(None)]).await;
        assert!(code == 0 && took < 3 * SECOND, "{code} after {took:?}");
        let (code, report, took) = status(vec![Does::Follows(None); 3]).await;
        assert!(code == 2 && took < 3 * SECOND, "{code} after {took:?}");
        assert!(report.summary.contains("(all replicas answer)"), "{}", report.summary);
    }

    #[test]
    fn replicas_are_named_in_the_singular_and_in_the_plural() {
        let replica = |name: &str, reason: Option<&str>| ControlState {
            name: name.into(),
            url: format!("https://{name}"),
            silence: reason.map(str::to_string),
        };
        let (one, two, three) = (
            replica("control-1", Some("refused")),
            replica("control-2", Some("refused")),
            replica("control-3", None),
        );
        let is_silent = |control: &ControlState| control.silence.is_some();
        assert_eq!(names(std::slice::from_ref(&three), is_silent), "");
        assert_eq!(names(&[one.clone(), three.clone()], is_silent), "control-1 does not answer");
        let all = [one.clone(), two, three];
        assert_eq!(names(&all, is_silent), "control-1 and control-2 do not answer");
        assert_eq!(names(&all, |control| control.silence.is_none()), "control-3");
        let finding = silence_finding(&one).expect("it is silent");
        assert_eq!(finding.message, "control-1 (https://control-1) does not answer: refused");
        let unnamed = ControlState { name: one.url.clone(), ..one };
        let finding = silence_finding(&unnamed).expect("it is silent");
        assert_eq!(finding.message, "https://control-1 does not answer: refused");
        assert!(silence_finding(&all[2]).is_none());
    }

    #[test]
    fn limits_that_are_not_enforced_are_reported() {
        let not_enforced = vec!["cpu, memory on node-1, node-2".into()];
        let status = Status { not_enforced, ..crate::testing::status() };
        let text = with_view(Vec::new(), status).to_text();
        assert_eq!(text, "all is well\n  not enforced: cpu, memory on node-1, node-2\n");
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_is_an_error() {
        let (client, _) = SimulatedReplicas::client(vec![Does::Refuses(401, "token-unknown")]);
        let error = query(&client).await.expect_err("refused");
        assert_eq!(error.code().map(|code| code.as_str()), Some("token-unknown"));
    }
}
