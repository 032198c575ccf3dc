//! Tests of certificates: one attack per line, and every flipped bit.

use crate::samples::{full_service, proposals};
use crate::support::{
    HOUR, NOW, approve, check, circle, deploy, enact, forget, genesis, hybrid, manifest, name, policy,
    proposal, retire, secret, sign_again, signed, try_propose,
};
use human_chain::{
    CircleState, PROPOSAL_LIFETIME_MS_MAX, propose, read_bundle, read_certificate, verify, verify_replay,
    vote,
};
use protocol::canonical::to_bytes;
use protocol::governance::{
    BALLOT_DOMAIN, BUNDLE_VERSION, BallotSignature, Bundle, Certificate, Change, Choice, GENESIS_DOMAIN,
    LogEvidence, Proposal,
};
use protocol::keys::ByteString;
use protocol::limits::{self, CLOCK_GRACE_MS};
use protocol::manifest::{Manifest, ModelChoice, Runtime, ServiceManifest};
use protocol::{Digest, Epoch, Millis, ModelRoot};

/// Alters a sound certificate of alice and bob after they signed, and checks the outcome. Both verifications
/// must agree, since no check here depends on the clock.
fn altered(case: &str, expected: &str, alter: impl FnOnce(&mut Certificate)) {
    let state = circle();
    let mut certificate = approve(&proposal(&state, deploy(4)), &["alice", "bob"]);
    alter(&mut certificate);
    check(case, verify(&state, &certificate, NOW), expected);
    check(case, verify_replay(&state, &certificate), expected);
}

/// Alters a sound proposal before alice and bob sign it, and checks the outcome.
fn mistaken(case: &str, expected: &str, alter: impl FnOnce(&mut Proposal)) {
    let state = circle();
    let mut proposal = proposal(&state, deploy(4));
    alter(&mut proposal);
    check(case, verify(&state, &approve(&proposal, &["alice", "bob"]), NOW), expected);
}

#[test]
fn a_quorum_of_members_approves() {
    let state = circle();
    let proposal = proposal(&state, deploy(4));
    for who in [&["alice", "bob"][..], &["bob", "carol"], &["alice", "bob", "carol"]] {
        let certificate = approve(&proposal, who);
        let approved = verify(&state, &certificate, NOW).expect("a quorum");
        assert_eq!(approved.get(), &deploy(4));
        assert_eq!(approved.certificate_digest(), certificate.digest());
        assert_eq!(approved.proposal(), proposal.id());
        assert_eq!(approved.into_inner(), deploy(4));
    }
    for who in [&[][..], &["alice"], &["carol"]] {
        check(
            "too few",
            verify(&state, &approve(&proposal, who), NOW),
            "quorum-not-reached: not reach the Routine quorum",
        );
    }
}

#[test]
fn any_invalid_ballot_spoils_the_whole() {
    altered("unaltered", "approved", |_| {});
    altered("a non-member beside a quorum", "not-a-member: `mallory`", |c| {
        c.ballots.push(vote(
            &secret("mallory"),
            name("mallory"),
            c.proposal.history,
            &c.proposal,
            Choice::Approve,
            NOW,
        ));
    });
    altered("a non-member instead of a member", "not-a-member: `mallory`", |c| {
        c.ballots[1] =
            vote(&secret("mallory"), name("mallory"), c.proposal.history, &c.proposal, Choice::Approve, NOW);
    });
    altered("a non-member in a member's name", "signature-invalid: `bob`", |c| {
        c.ballots[1] =
            vote(&secret("mallory"), name("bob"), c.proposal.history, &c.proposal, Choice::Approve, NOW);
    });
    altered("one member in another's name", "signature-invalid: `bob`", |c| {
        c.ballots[1] =
            vote(&secret("alice"), name("bob"), c.proposal.history, &c.proposal, Choice::Approve, NOW);
    });
    altered("the same ballot twice", "ballot-duplicate: `bob`", |c| c.ballots.push(c.ballots[1].clone()));
    altered("the same member twice", "ballot-duplicate: `alice`", |c| {
        c.ballots[1] = vote(
            &secret("alice"),
            name("alice"),
            c.proposal.history,
            &c.proposal,
            Choice::Approve,
            Millis(NOW.0 + 1),
        );
    });
    altered("twice, not side by side", "ballot-duplicate: `alice`", |c| c.ballots.push(c.ballots[0].clone()));
    altered("unsorted", "governance-invalid: not sorted", |c| c.ballots.reverse());
    altered("a no", "governance-invalid: no approval", |c| {
        c.ballots.push(vote(
            &secret("carol"),
            name("carol"),
            c.proposal.history,
            &c.proposal,
            Choice::Reject,
            NOW,
        ));
    });
    altered("a rejection relabelled as an approval", "signature-invalid: `bob`", |c| {
        c.ballots[1] =
            vote(&secret("bob"), name("bob"), c.proposal.history, &c.proposal, Choice::Reject, NOW);
        c.ballots[1].ballot.choice = Choice::Approve;
    });
    altered(
        "too many ballots",
        "governance-invalid: 116 ballots; accepted: at most 996352 bytes, 115 ballots",
        |c| {
            c.ballots = vec![c.ballots[0].clone(); limits::BALLOTS_MAX + 1];
        },
    );
    altered("oversized data", "governance-invalid: 2 ballots; accepted: at most 996352 bytes", |c| {
        hybrid(&mut c.ballots[1]).ml_dsa = ByteString(vec![0; limits::CERTIFICATE_BYTES_MAX]);
    });
    altered("a late ballot", "proposal-expired: voted after", |c| {
        let late = c.proposal.expires_at.plus(CLOCK_GRACE_MS + 1);
        c.ballots[1] =
            vote(&secret("bob"), name("bob"), c.proposal.history, &c.proposal, Choice::Approve, late);
    });
}

#[test]
fn both_halves_of_a_signature_must_hold() {
    for (case, who) in [("first", 0), ("second", 1)] {
        altered(case, "signature-invalid", |c| hybrid(&mut c.ballots[who]).ed25519.0[5] ^= 1);
        altered(case, "signature-invalid", |c| hybrid(&mut c.ballots[who]).ml_dsa.0[5] ^= 1);
        altered(case, "signature-invalid", |c| hybrid(&mut c.ballots[who]).ml_dsa = ByteString(Vec::new()));
        altered(case, "signature-invalid", |c| hybrid(&mut c.ballots[who]).ml_dsa.0.push(0));
    }
    let whole = secret("bob");
    let other = secret("mallory");
    altered("the quantum half by another", "signature-invalid: `bob`", |c| {
        let bytes = to_bytes(&c.ballots[1].ballot);
        hybrid(&mut c.ballots[1]).ml_dsa = other.sign(BALLOT_DOMAIN, &bytes).ml_dsa;
    });
    altered("the classical half by another", "signature-invalid: `bob`", |c| {
        let bytes = to_bytes(&c.ballots[1].ballot);
        hybrid(&mut c.ballots[1]).ed25519 = other.sign(BALLOT_DOMAIN, &bytes).ed25519;
    });
    altered("signed for another purpose", "signature-invalid: `bob`", |c| {
        let bytes = to_bytes(&c.ballots[1].ballot);
        *hybrid(&mut c.ballots[1]) = whole.sign(GENESIS_DOMAIN, &bytes);
    });
    altered("halves of two signatures by the same member", "approved", |c| {
        let bytes = to_bytes(&c.ballots[1].ballot);
        hybrid(&mut c.ballots[1]).ml_dsa = whole.sign(BALLOT_DOMAIN, &bytes).ml_dsa;
    });
}

#[test]
fn a_proposal_cannot_change_under_its_ballots() {
    const MISMATCH: &str = "ballot-mismatch: `alice` is for another proposal";
    altered("change", MISMATCH, |c| c.proposal.change = deploy(5));
    altered("reason", MISMATCH, |c| c.proposal.reason.push('!'));
    altered("created", MISMATCH, |c| c.proposal.created_at.0 += 1);
    altered("expires", MISMATCH, |c| c.proposal.expires_at.0 += 1);
    altered("nonce", MISMATCH, |c| c.proposal.nonce.0[0] ^= 1);
    let state = circle();
    let (mine, other) = (proposal(&state, deploy(4)), proposal(&state, deploy(5)));
    altered("ballots of another proposal", MISMATCH, |c| {
        c.ballots = approve(&other, &["alice", "bob"]).ballots
    });
    // A dishonest screen: the member signs the id of the right proposal over the text of another one.
    altered("another text", "ballot-mismatch: `bob` is for another rendering", |c| {
        let mut signed = vote(&secret("bob"), name("bob"), mine.history, &mine, Choice::Approve, NOW);
        signed.ballot.rendering = human_chain::render(&other).digest;
        sign_again(&mut signed, "bob");
        c.ballots[1] = signed;
    });
}

#[test]
fn a_proposal_binds_circle_epoch_and_subject() {
    mistaken("sound", "approved", |_| {});
    mistaken("another circle", "circle-mismatch: belongs to circle", |p| p.circle.0.0[0] ^= 1);
    mistaken("a later epoch", "circle-mismatch: was made in epoch 2", |p| p.epoch = Epoch(2));
    mistaken("an earlier epoch", "circle-mismatch: was made in epoch 0", |p| p.epoch = Epoch(0));
    mistaken("no subject", "governance-invalid: proposal.subjects", |p| p.subjects.clear());
    mistaken("two subjects", "governance-invalid: proposal.subjects", |p| {
        p.subjects.push(p.subjects[0].clone())
    });
    mistaken("another subject", "governance-invalid: does not touch", |p| {
        p.subjects[0].subject = "service/other".into();
    });
    mistaken("a version to come", "proposal-stale: it saw version 1, now is 0", |p| {
        p.subjects[0].version = 1
    });
    mistaken("another value", "proposal-stale", |p| p.subjects[0].value = Some(Digest::of(b"x")));
    mistaken(
        "too long a reason",
        "governance-invalid: its reason is 4097 bytes; accepted: at most 4096",
        |p| {
            p.reason = "x".repeat(limits::REASON_BYTES_MAX + 1);
        },
    );
    mistaken("the longest reason", "approved", |p| p.reason = "x".repeat(limits::REASON_BYTES_MAX));
    mistaken(
        "no life",
        "governance-invalid: expires at 2026-11-21 12:41:50.000 UTC (1795264910000), \
         not after it begins at 2026",
        |p| p.expires_at = p.created_at,
    );
    mistaken(
        "too long a life",
        "governance-invalid: and expires at 2026-12-21 12:41:50.001 UTC (1797856910001); \
         accepted: at most thirty days",
        |p| {
            p.expires_at = p.created_at.plus(PROPOSAL_LIFETIME_MS_MAX + 1);
        },
    );
    mistaken("the longest life", "approved", |p| {
        p.expires_at = p.created_at.plus(PROPOSAL_LIFETIME_MS_MAX);
    });
}

#[test]
fn another_circle_of_the_same_people_is_another_circle() {
    let mut twin = genesis();
    twin.founded_at = Millis(NOW.0 + 1);
    let twin = CircleState::found(&signed(twin), None).expect("sound");
    let certificate = approve(&proposal(&twin, deploy(4)), &["alice", "bob"]);
    check("at home", verify(&twin, &certificate, NOW), "approved");
    check("abroad", verify(&circle(), &certificate, NOW), "circle-mismatch: belongs to circle");
    let approved = verify(&twin, &certificate, NOW).expect("at home");
    check("applied abroad", circle().advance(approved), "circle-mismatch: belongs to circle");
}

#[test]
fn certificates_expire_for_first_use_only() {
    let state = circle();
    let certificate = approve(&proposal(&state, deploy(4)), &["alice", "bob"]);
    for (after, expected) in [
        (0, "approved"),
        (HOUR + CLOCK_GRACE_MS, "approved"),
        (HOUR + CLOCK_GRACE_MS + 1, "proposal-expired: expired at 2026-11-21 13:41:50.000 UTC"),
        (1000 * HOUR, "proposal-expired: expired at 2026-11-21 13:41:50.000 UTC"),
    ] {
        check("first use", verify(&state, &certificate, NOW.plus(after)), expected);
    }
    check("replayed history", verify_replay(&state, &certificate), "approved");
}

/// Proposes an altered sample service and verifies it as if a careless proposer had signed it.
fn service(case: &str, expected: &str, alter: impl FnOnce(&mut ServiceManifest)) {
    let mut service = full_service();
    service.egress.clear();
    alter(&mut service);
    deployment(case, expected, Manifest::Service(service));
}

fn deployment(case: &str, expected: &str, manifest: Manifest) {
    let state = circle();
    let mut careless = proposal(&state, deploy(4));
    careless.subjects[0].subject = format!("service/{}", manifest.name());
    careless.change = Change::Deploy(Box::new(manifest.clone()));
    check(case, verify(&state, &approve(&careless, &["alice", "bob"]), NOW), expected);
    check(case, try_propose(&state, Change::Deploy(Box::new(manifest))), expected);
}

#[test]
fn only_what_can_run_is_approved() {
    for (kind, proposal) in proposals() {
        let expected = match kind {
            "job" | "job-open" => "approved",
            "edge" => "kind-not-built: running an edge rollout",
            _ => continue,
        };
        let Change::Deploy(manifest) = proposal.change else { continue };
        deployment(kind, expected, *manifest);
    }
    service("sound", "approved", |_| {});
    service("process", "kind-not-built: the process runtime", |s| s.runtime = Runtime::Process);
    service("egress", "egress-not-built: `chat`", |s| s.egress.push("example.org".into()));
    service(
        "over",
        "governance-invalid: valid until 2026-11-21 12:41:50.000 UTC (1795264910000), over when it begins",
        |s| s.valid_until = Some(NOW),
    );
    service("not over", "approved", |s| s.valid_until = Some(NOW.plus(1)));
}

#[test]
fn changes_must_make_sense_where_they_are_asked_for() {
    let mut state = circle();
    enact(&mut state, deploy(4), &["alice", "bob"]);
    let long = Change::Retire { service: name("embed"), grace_seconds: 8 * 24 * 3600 };
    let week = Change::Retire { service: name("embed"), grace_seconds: 7 * 24 * 3600 };
    for (case, change, expected) in [
        ("what runs", retire("embed"), "approved"),
        ("a week of grace", week, "approved"),
        (
            "more than a week",
            long,
            "governance-invalid: retire: 691200 s of grace; accepted: at most 604800 (a week)",
        ),
        ("what does not run", retire("other"), "governance-invalid: `other` does not run"),
        ("a node", Change::RemoveNode { node: name("n1") }, "approved"),
        ("no node", Change::RemoveNode { node: name("n9") }, "governance-invalid: no node `n9`"),
    ] {
        check(case, try_propose(&state, change), expected);
    }
}

#[test]
fn a_model_is_forgotten_once_and_never_while_a_service_names_it() {
    let mut founding = genesis();
    founding.policy = policy("2 of (alice, bob, carol)", "3 of (alice, bob, carol)");
    let mut state = CircleState::found(&signed(founding), None).expect("a sound genesis");
    enact(&mut state, deploy(4), &["alice", "bob"]);
    let month = 30 * 24 * 3600;
    for (case, change, expected) in [
        ("in use", forget("minilm", 0), "model-in-use: service `embed` is approved to run model `minilm`"),
        ("not in use", forget("spare", month), "approved"),
        ("a long grace", forget("spare", month + 1), "governance-invalid: accepted: at most 2592000"),
    ] {
        check(case, try_propose(&state, change), expected);
    }
    let routine = approve(&proposal(&state, forget("spare", 60)), &["alice", "bob"]);
    check("a routine quorum", verify(&state, &routine, NOW), "quorum-not-reached: Sensitive");
    enact(&mut state, forget("spare", 60), &["alice", "bob", "carol"]);
    let root = ModelRoot(Digest::of(b"spare"));
    assert_eq!(state.forgotten(&root).unwrap().ends_at(), NOW.plus(60_000));
    check("again", try_propose(&state, forget("spare", 60)), "model-forgotten: `spare`");
    let Change::Deploy(mut manifest) = deploy(4) else { unreachable!("a deployment") };
    if let Manifest::Service(manifest) = manifest.as_mut() {
        manifest.name = name("other");
        manifest.model = ModelChoice { name: name("spare"), root };
    }
    check("to run", try_propose(&state, Change::Deploy(manifest)), "model-forgotten: `spare`");
}

/// Approved side by side, only the first to come into force stands: a service never names a forgotten model.
#[test]
fn a_deployment_and_the_forgetting_of_its_model_exclude_each_other() {
    let everyone = ["alice", "bob", "carol"];
    for changes in [[deploy(4), forget("minilm", 0)], [forget("minilm", 0), deploy(4)]] {
        let mut state = circle();
        let [first, second] = changes.map(|change| approve(&proposal(&state, change), &everyone));
        let verified = verify(&state, &second, NOW).unwrap();
        let approved = verify(&state, &first, NOW).unwrap();
        assert_eq!(state.advance(approved), Ok(()));
        let refused = state.advance(verified).unwrap_err().code().as_str();
        assert!(matches!(refused, "model-forgotten" | "model-in-use"), "{refused}");
        assert_eq!(state.check_invariants(), Ok(()));
    }
}

#[test]
fn a_proposal_is_made_for_the_state_it_sees() {
    let mut state = circle();
    let first = proposal(&state, deploy(4));
    assert_eq!((first.circle, first.epoch), (state.id(), state.epoch()));
    assert_eq!(first.subjects, vec![state.subject("service/embed")]);
    enact(&mut state, deploy(4), &["alice", "bob"]);
    let second = proposal(&state, deploy(5));
    assert_eq!((second.subjects[0].version, second.subjects[0].value.is_some()), (1, true));
    let nonce =
        |byte| propose(&state, deploy(5), String::new(), NOW, NOW.plus(1), Digest([byte; 32])).unwrap();
    assert_ne!(nonce(1).id(), nonce(2).id());
}

#[test]
fn certificates_travel_in_one_spelling() {
    let state = circle();
    let certificate = approve(&proposal(&state, deploy(4)), &["alice", "bob"]);
    let bytes = to_bytes(&certificate);
    assert_eq!(read_certificate(&bytes), Ok(certificate.clone()));
    check("longer", read_certificate(&[bytes.clone(), vec![0]].concat()), "governance-invalid: certificate");
    check("shorter", read_certificate(&bytes[..bytes.len() - 1]), "governance-invalid: certificate");
    let huge = vec![0; limits::CERTIFICATE_BYTES_MAX + 1];
    check("huge", read_certificate(&huge), "governance-invalid: exceed the limit");

    let mut bundle =
        Bundle { version: BUNDLE_VERSION, certificate, log_evidence: Some(LogEvidence { sequence: 7 }) };
    assert_eq!(read_bundle(&to_bytes(&bundle)), Ok(bundle.clone()));
    bundle.version += 1;
    check("a form to come", read_bundle(&to_bytes(&bundle)), "governance-invalid: this release reads 3");
    check("not a bundle", read_bundle(&bytes), "governance-invalid: bundle");
}

/// Flips one bit of the bytes, then reads and verifies them.
fn survives(state: &CircleState, bytes: &[u8], bit: usize) -> bool {
    let mut flipped = bytes.to_vec();
    flipped[bit / 8] ^= 1 << (bit % 8);
    read_certificate(&flipped).is_ok_and(|certificate| verify(state, &certificate, NOW).is_ok())
}

#[test]
fn every_bit_of_a_certificate_counts() {
    let state = circle();
    let certificate = approve(&proposal(&state, smallest()), &["alice", "bob"]);
    let bytes = to_bytes(&certificate);
    check("unaltered", read_certificate(&bytes).and_then(|c| verify(&state, &c, NOW)), "approved");
    // The two post-quantum signatures are uniform bytes: a stride covers them; all other bits are tested.
    let dense: Vec<usize> = dense_bits(&bytes, &certificate);
    let sparse = (0..bytes.len() * 8).step_by(67);
    for bit in dense.into_iter().chain(sparse) {
        assert!(!survives(&state, &bytes, bit), "bit {bit} of {}", bytes.len() * 8);
    }
}

/// Returns the smallest possible change.
fn smallest() -> Change {
    Change::RemoveNode { node: name("n2") }
}

/// Returns the index of every bit outside the post-quantum signatures.
fn dense_bits(bytes: &[u8], certificate: &Certificate) -> Vec<usize> {
    let mut inside = vec![false; bytes.len()];
    for signed in &certificate.ballots {
        let BallotSignature::Hybrid(signature) = &signed.signature else { panic!("a hybrid one") };
        let signature = &signature.ml_dsa.0;
        let start =
            bytes.windows(signature.len()).position(|part| part == signature).expect("it is in there");
        inside[start..start + signature.len()].fill(true);
    }
    (0..bytes.len() * 8).filter(|bit| !inside[bit / 8]).collect()
}

#[test]
fn manifests_from_text_can_be_approved() {
    let text = "kind = \"service\"\nname = \"chat\"\ntask = \"generate\"\nreplicas = { min = 0, max = 2 }\n\
        resources = { cpu_millicores = 50, memory = \"1 GiB\", gpu_share_percent = 99, \
        gpu_memory = \"1 GiB\" }\n";
    let text = format!("{text}model = {{ name = \"m\", root = \"{}\" }}\n", Digest::of(b"m"));
    deployment("from text", "approved", manifest(&text));
}
