//! Tests of founding a circle: sound and rejected genesis documents.

use crate::support::{
    NOW, approve, check, circle, claimed_by, deploy, founded, genesis, key, member, name, node, policy,
    proposal, quorum, secret, signed,
};
use human_chain::{CircleState, circle_id, describe, read_genesis, sign_genesis, verify};
use protocol::canonical::to_bytes;
use protocol::governance::{ActionClass, Genesis, NodeRole, Policy};
use protocol::keys::ByteString;
use protocol::{MemberId, NodeId, PublicKey, ReplicaId, limits};

#[test]
fn a_circle_is_what_its_genesis_says() {
    let genesis = genesis();
    let state = CircleState::found(&signed(genesis.clone()), Some(circle_id(&genesis))).expect("sound");
    assert_eq!(state.id(), circle_id(&genesis));
    assert_eq!((state.name(), state.epoch().0, state.length()), ("harbour", 1, 0));
    assert_eq!(state.members().cloned().collect::<Vec<_>>(), genesis.members);
    assert_eq!(state.member(&name("bob")), Some(&genesis.members[1]));
    assert_eq!(state.policy(), &genesis.policy);
    assert_eq!(state.control(), genesis.control);
    assert_eq!((state.access(), state.access_certificate()), (&genesis.access, state.id().0));
    assert_eq!(state.nodes().cloned().collect::<Vec<_>>(), genesis.nodes);
    assert_eq!(state.node(&name("n2")), Some(&genesis.nodes[1]));
    assert_eq!(state.node_by_id(genesis.nodes[2].id), Some(&genesis.nodes[2]));
    assert_eq!(state.node_by_id(NodeId(key("unknown"))), None);
    assert!(state.is_control_key(&key("control")) && !state.is_control_key(&key("n1")));
    assert_eq!(state.services().count() + state.retired().count(), 0);
    assert_eq!((state.subject("circle").version, state.subject("node/n1").version), (1, 1));
    assert_eq!(state.subject("access").version, 1);
    assert_eq!((state.subject("service/x").version, state.subject("service/x").value), (0, None));
}

#[test]
fn a_pinned_circle_is_not_another_one() {
    let mut other = genesis();
    other.name = "harbor".into();
    let pinned = Some(circle().id());
    check("other", CircleState::found(&signed(other), pinned), "circle-mismatch: belongs to circle");
    check("same", CircleState::found(&signed(genesis()), pinned), "approved");
}

#[test]
fn every_founder_signs_and_no_other_person() {
    let sound = signed(genesis());
    let by = |who: &str| -> MemberId { name(who) };

    let mut missing = sound.clone();
    missing.signatures.remove(&by("carol"));
    check("missing", CircleState::found(&missing, None), "founder-signature-missing: `carol`");

    let mut extra = sound.clone();
    extra.signatures.insert(by("mallory"), sound.signatures[&by("alice")].clone());
    check("extra", CircleState::found(&extra, None), "not-a-member: `mallory`");

    let mut swapped = sound.clone();
    swapped.signatures.insert(by("bob"), sound.signatures[&by("alice")].clone());
    check("swapped", CircleState::found(&swapped, None), "signature-invalid: `bob`");

    let outsider = secret("mallory");
    let (alice, carol) = (secret("alice"), secret("carol"));
    let founders = [(by("alice"), &alice), (by("bob"), &outsider), (by("carol"), &carol)];
    check(
        "forged",
        CircleState::found(&sign_genesis(genesis(), &founders), None),
        "signature-invalid: `bob`",
    );

    let mut altered = sound.clone();
    altered.genesis.name = "harbor".into();
    check("altered", CircleState::found(&altered, None), "signature-invalid: `alice`");

    let mut endless = sound.clone();
    endless.signatures.get_mut(&by("bob")).unwrap().ml_dsa = ByteString(vec![0; limits::GENESIS_BYTES_MAX]);
    check(
        "oversized data",
        CircleState::found(&endless, None),
        "governance-invalid: accepted: at most 2097152; admit some of the nodes",
    );

    let mut half = sound.clone();
    half.signatures.get_mut(&by("bob")).unwrap().ml_dsa = ByteString(Vec::new());
    check("classical half alone", CircleState::found(&half, None), "signature-invalid: `bob`");
}

#[test]
fn a_genesis_travels_in_one_spelling() {
    let sound = signed(genesis());
    let bytes = to_bytes(&sound);
    assert_eq!(read_genesis(&bytes), Ok(sound));
    check("longer", read_genesis(&[bytes.clone(), vec![0]].concat()), "governance-invalid: genesis");
    check("huge", read_genesis(&vec![0; limits::GENESIS_BYTES_MAX + 1]), "governance-invalid: genesis");
    // Testing every bit would take seconds; a prime stride visits every bit position within a byte.
    for bit in (0..bytes.len() * 8).step_by(251) {
        let mut altered = bytes.clone();
        altered[bit / 8] ^= 1 << (bit % 8);
        let outcome = read_genesis(&altered).and_then(|signed| CircleState::found(&signed, None));
        assert!(outcome.is_err(), "bit {bit}");
    }
}

#[test]
fn names_and_members_have_their_form() {
    founded("unaltered", "approved", |_| {});
    founded("no name", "governance-invalid: genesis.name: is empty", |g| g.name.clear());
    founded("long name", "governance-invalid: genesis.name: is 64 bytes; accepted: at most 63", |g| {
        g.name = "x".repeat(64)
    });
    founded("control character", "governance-invalid: genesis.name: contains", |g| g.name.push('\u{7}'));
    founded("no members", "governance-invalid: 0 members", |g| g.members.clear());
    founded("twice", "governance-invalid: same id", |g| g.members.push(member("alice")));
    founded("two names, one key", "governance-invalid: `dave` uses a key in use", |g| {
        let mut dave = member("alice");
        dave.id = name("dave");
        g.members.push(dave);
    });
    founded("two names, one post-quantum key", "governance-invalid: `dave` uses a key in use", |g| {
        let mut dave = member("dave");
        dave.keys.ml_dsa = member("alice").keys.ml_dsa;
        g.members.push(dave);
    });
    founded("weak key", "governance-invalid: Ed25519 key that is none", |g| {
        g.members[0].keys.ed25519 = PublicKey(std::array::from_fn(|at| u8::from(at == 0)));
    });
    founded("not a key", "governance-invalid: Ed25519 key that is none", |g| {
        g.members[0].keys.ed25519 = PublicKey(std::array::from_fn(|at| u8::from(at == 0) * 2));
    });
    founded("short ML-DSA key", "governance-invalid: an ML-DSA-65 key of 1951 bytes; it has 1952", |g| {
        g.members[0].keys.ml_dsa.0.pop();
    });
    founded("short ML-KEM key", "governance-invalid: members: an ML-KEM-768 key", |g| {
        g.members[0].keys.encryption.ml_kem.0.pop();
    });
    founded("no X25519 key", "governance-invalid: members: an X25519 key", |g| {
        g.members[0].keys.encryption.x25519 = PublicKey([0; 32]);
    });
    let crowd = limits::MEMBERS_MAX + 1;
    founded("too many members", "governance-invalid: 100 members", |g| {
        g.members = vec![member("alice"); crowd]
    });
}

#[test]
fn control_replicas_have_their_form() {
    founded("no control", "governance-invalid: 0 replicas", |g| g.control.clear());
    founded("too much control", "governance-invalid: 8 replicas", |g| {
        g.control = vec![g.control[0].clone(); 8]
    });
    founded("one key, two replicas", "governance-invalid: share an id or a key", |g| {
        let mut second = g.control[0].clone();
        second.id = ReplicaId(2);
        g.control.push(second);
    });
    founded("one id, two replicas", "governance-invalid: share an id or a key", |g| {
        let mut second = g.control[0].clone();
        second.key = key("other");
        g.control.push(second);
    });
    founded("replica 0", "governance-invalid: means no replica", |g| g.control[0].id = ReplicaId(0));
    for bad in [
        "",
        "host",
        "host:",
        ":7000",
        "host:0",
        "host:70000",
        "ho st:1",
        "a/b:1",
        "höst:1",
        &format!("{}:1", "x".repeat(300)),
    ] {
        founded(bad, "governance-invalid: genesis.control.address", |g| g.control[0].address = bad.into());
    }
    for bad in ["", "host:1", "ftp://host:1", "http://host", "https://host:1/path"] {
        founded(bad, "governance-invalid: genesis.control.api", |g| g.control[0].api = bad.into());
    }
}

#[test]
fn nodes_have_their_form() {
    founded("no role", "governance-invalid: has no role", |g| g.nodes[0].roles.clear());
    founded("role without storage", "governance-invalid: storage exactly", |g| g.nodes[1].storage = None);
    founded("storage without role", "governance-invalid: storage exactly", |g| {
        g.nodes[2].storage = g.nodes[1].storage.clone();
    });
    founded("no stores", "governance-invalid: stores; accepted: 1 to 128", |g| {
        g.nodes[1].storage.as_mut().unwrap().stores.clear();
    });
    founded("too many stores", "governance-invalid: stores; accepted: 1 to 128", |g| {
        g.nodes[1].storage.as_mut().unwrap().stores = (0..129).map(|n| name(&format!("disk-{n}"))).collect();
    });
    founded("gateway role without gateway", "governance-invalid: gateway exactly", |g| {
        g.nodes[2].gateway = None
    });
    founded("gateway without its role", "governance-invalid: gateway exactly", |g| {
        g.nodes[0].gateway = g.nodes[2].gateway.clone();
    });
    founded("one name, two nodes", "governance-invalid: name `n1` twice", |g| {
        let mut second = node("n4", &[NodeRole::Worker]);
        second.name = name("n1");
        g.nodes.push(second);
    });
    for (case, taken) in [("node", "n2"), ("control", "control"), ("gateway", "n3 gateway")] {
        founded(case, "governance-invalid: uses a key in use", |g| {
            g.nodes.push(claimed_by(taken, node("n4", &[NodeRole::Worker])));
        });
    }
    founded("a node that is its own gateway", "governance-invalid: uses a key in use", |g| {
        g.nodes[2] = claimed_by("n3 gateway", g.nodes[2].clone());
    });
    founded("ML-KEM key", "governance-invalid: node: an ML-KEM-768", |g| {
        g.nodes[0].encryption.ml_kem.0.push(0)
    });
    founded("region", "governance-invalid: node.region", |g| g.nodes[0].region = "x".repeat(64));
    founded("label value", "governance-invalid: node.labels", |g| {
        g.nodes[0].labels.insert("a".into(), "line\nbreak".into());
    });
    founded("label key", "governance-invalid: node.labels", |g| {
        g.nodes[0].labels.insert("x".repeat(64), "a".into());
    });
    founded("labels", "governance-invalid: `n1` has 65 labels; accepted: at most 64", |g| {
        g.nodes[0].labels = (0..65).map(|n| (n.to_string(), String::new())).collect();
    });
    founded("storage address", "governance-invalid: node.storage.address", |g| {
        g.nodes[1].storage.as_mut().unwrap().address = "nowhere".into();
    });
    founded("gateway address", "governance-invalid: node.gateway.address", |g| {
        g.nodes[2].gateway.as_mut().unwrap().address = "nowhere".into();
    });
    founded("gateway api", "governance-invalid: node.gateway.api", |g| {
        g.nodes[2].gateway.as_mut().unwrap().api = "nowhere:1".into();
    });
}

fn without_a_routine_rule(genesis: &mut Genesis) {
    let quorums = genesis.policy.quorums.split_off(&ActionClass::Sensitive);
    genesis.policy = Policy { quorums, passkeys: None, veto_seconds: 0, proposer_counts: true };
}

#[test]
fn a_class_without_a_rule_needs_the_quorum_of_sensitive_changes() {
    let mut genesis = genesis();
    genesis.policy = policy("2 of (alice, bob, carol)", "3 of (alice, bob, carol)");
    without_a_routine_rule(&mut genesis);
    let state = CircleState::found(&signed(genesis), None).expect("a sensitive rule suffices");
    assert_eq!(describe(state.quorum(ActionClass::Routine)), "3 of (alice, bob, carol)");
    let routine = proposal(&state, deploy(2));
    let two = verify(&state, &approve(&routine, &["alice", "bob"]), NOW);
    check("two of three", two, "quorum-not-reached: 3 of (alice, bob, carol)");
    check("all three", verify(&state, &approve(&routine, &["alice", "bob", "carol"]), NOW), "approved");
}

#[test]
fn a_policy_keeps_its_floors() {
    const ALL: &str = "2 of (alice, bob, carol)";
    for (routine, expected) in [
        (ALL, "approved"),
        ("3 of (alice, bob, carol)", "approved"),
        ("2 of (alice, bob)", "approved"),
        ("2 of (alice, 1 of (bob, carol))", "approved"),
        ("2 of (2 of (alice, bob), carol)", "approved"),
        ("1 of (2 of (alice, bob))", "approved"),
        ("alice", "governance-invalid: lets one member decide alone"),
        ("1 of (alice, bob, carol)", "governance-invalid: lets one member decide alone"),
        ("1 of (alice, 2 of (bob, carol))", "governance-invalid: lets one member decide alone"),
        ("2 of (alice, alice, bob)", "governance-invalid: names `alice` twice"),
        ("2 of (alice, 1 of (alice, bob))", "governance-invalid: names `alice` twice"),
        ("2 of (alice, bob, mallory)", "governance-invalid: names `mallory`, who is not a member"),
        ("0 of (alice, bob)", "governance-invalid: asks for 0 of 2"),
        ("3 of (alice, bob)", "governance-invalid: asks for 3 of 2"),
        ("0 of ()", "governance-invalid: asks for 0 of 0"),
        ("2 of (alice, bob, 0 of (carol))", "governance-invalid: asks for 0 of 1"),
    ] {
        founded(routine, expected, |g| g.policy = policy(routine, ALL));
        founded(routine, expected, |g| g.policy = policy(ALL, routine));
        assert_eq!(describe(&quorum(routine)), routine);
    }
    let four = |rule: &'static str| {
        move |g: &mut Genesis| {
            g.members.push(member("dave"));
            g.policy = policy(rule, "3 of (alice, bob, carol, dave)");
        }
    };
    founded(
        "half",
        "governance-invalid: two groups that share nobody",
        four("2 of (alice, bob, carol, dave)"),
    );
    let pairs = "1 of (2 of (alice, bob), 2 of (carol, dave))";
    founded("either pair", "governance-invalid: two groups that share nobody", four(pairs));
    founded("both pairs", "approved", four("2 of (1 of (alice, bob), 2 of (carol, dave))"));
    founded("no sensitive rule", "governance-invalid: has no quorum for sensitive", |g| {
        g.policy.quorums.remove(&ActionClass::Sensitive);
    });
    founded("no routine rule", "approved", without_a_routine_rule);
    founded("a month for a veto", "approved", |g| g.policy.veto_seconds = 30 * 24 * 3600);
    founded("longer", "governance-invalid: policy: 2592001 s for a veto; accepted: at most 2592000", |g| {
        g.policy.veto_seconds = 30 * 24 * 3600 + 1;
    });
    founded("deep", "governance-invalid: nested deeper", |g| {
        g.policy = policy(&format!("{}{ALL}{}", "1 of (".repeat(6), ")".repeat(6)), ALL);
    });
    founded("as deep as allowed", "approved", |g| {
        g.policy = policy(&format!("{}{ALL}{}", "1 of (".repeat(5), ")".repeat(5)), ALL);
    });
    let mut deepest = genesis();
    deepest.policy = policy(&format!("{}{ALL}{}", "1 of (".repeat(5), ")".repeat(5)), ALL);
    check("the deepest rule travels", read_genesis(&to_bytes(&signed(deepest))), "approved");
    founded("one member alone is a circle", "approved", |g| {
        g.members.truncate(1);
        g.policy = policy("alice", "1 of (alice)");
    });
}
