//! A hostile control plane against honest agents and the real command line.
//!
//! The control plane is built here, and the product has no switch for it. It holds the keys of every control
//! replica, signs what it likes, and answers with what it likes: to the real agent over its link to control,
//! and to the `quorate` binary over HTTP. Each attack has a name, and goes for one of the holes that the
//! foundation of the project once had; `SPECIFICATION.md` numbers them as the table does. An attack of which
//! anything succeeds fails the test. So does one whose positive control has no effect: the same way through
//! the same harness, with an answer that an honest control could give.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../../../human-chain/tests/chain/authenticator.rs"]
#[allow(dead_code, reason = "shared with the tests of the chain")]
mod authenticator;
#[path = "../../../gpu-agent/src/agent/core/testing.rs"]
#[allow(dead_code, reason = "shared with the tests of the agent")]
mod circle;
mod closed_pipe;
mod member;
mod member_attacks;
mod node;
mod node_attacks;
mod passkey_attacks;
mod store_attacks;

/// Outcome of one attack and of its positive control.
#[derive(Debug)]
struct Attack {
    /// Number of the hole in the table of `SPECIFICATION.md`.
    hole: u32,
    name: &'static str,
    /// Reason for which the attack came to nothing; none if it succeeded.
    stopped: Option<String>,
    /// Whether the positive control had its effect.
    control: bool,
}

impl Attack {
    /// Judges an attack by the refusal that stopped it: another refusal stops it for another reason, and
    /// shows no guard.
    fn refused(
        hole: u32,
        name: &'static str,
        outcome: Result<(), String>,
        expected: &str,
        control: bool,
    ) -> Self {
        let code = outcome.err();
        if let Some(code) = &code {
            assert_eq!(code, expected, "{name}: the refusal of another guard");
        }
        Self { hole, name, stopped: code, control }
    }

    /// Judges an attack by its effect.
    fn without_effect(hole: u32, name: &'static str, has_effect: bool, because: &str, control: bool) -> Self {
        Self { hole, name, stopped: (!has_effect).then(|| because.to_string()), control }
    }
}

/// Prints the table, and fails if any attack succeeded or any positive control had no effect.
fn judge(against: &str, attacks: &[Attack]) {
    println!("{:<4} {:<52} {:<28} POSITIVE CONTROL", "HOLE", "ATTACK", "STOPPED BY");
    for attack in attacks {
        let stopped = attack.stopped.as_deref().unwrap_or("NOTHING: IT SUCCEEDED");
        let control = if attack.control { "has its effect" } else { "WITHOUT EFFECT" };
        println!("{:<4} {:<52} {stopped:<28} {control}", attack.hole, attack.name);
    }
    let succeeded: Vec<&str> =
        attacks.iter().filter(|attack| attack.stopped.is_none()).map(|attack| attack.name).collect();
    println!("{} attacks on {against}: {} succeeded", attacks.len(), succeeded.len());
    let idle: Vec<&str> = attacks.iter().filter(|attack| !attack.control).map(|attack| attack.name).collect();
    assert!(succeeded.is_empty(), "succeeded: {succeeded:?}");
    assert!(idle.is_empty(), "without a positive control: {idle:?}");
}

#[tokio::test(start_paused = true)]
async fn no_attack_of_a_hostile_control_on_an_agent_succeeds() {
    judge("the agent", &node_attacks::all().await);
}

#[tokio::test(start_paused = true)]
async fn no_attack_of_a_hostile_control_by_a_members_passkey_succeeds() {
    judge("the agent, by passkey", &passkey_attacks::all().await);
}

/// Connections take real time, which the clock of the others would leap over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_attack_of_a_hostile_control_on_a_store_succeeds() {
    judge("a node's store", &store_attacks::all().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_attack_of_a_hostile_control_on_a_member_succeeds() {
    judge("the command line", &member_attacks::all().await);
}
