//! Attacks of a hostile control that leaves decisions out of a history, reorders them, or serves an old one.
//!
//! Each attack has its positive control: signers that name the empty history, as if no head were signed.

use crate::support::{
    NOW, approve, check, circle, deploy, enact, genesis, name, node, proposal, retire, secret, signed,
};
use human_chain::{CircleState, verify, vote};
use protocol::Digest;
use protocol::governance::{Certificate, Change, Choice, HistoryHead, NodeRole};

/// Makes a proposal whose proposer and voters all name this head, and its certificate.
fn certificate_naming(head: HistoryHead, state: &CircleState, change: Change) -> Certificate {
    let mut proposal = proposal(state, change);
    proposal.history = head;
    let cast = |who| vote(&secret(who), name(who), head, &proposal, Choice::Approve, NOW);
    let ballots = vec![cast("alice"), cast("bob")];
    Certificate { proposal, ballots }
}

/// Enacts a history in which a service is deployed, restricted, and retired, a node is removed, and another
/// node is admitted. `named` chooses the head that the signers name.
fn history(named: impl Fn(&CircleState) -> HistoryHead) -> (CircleState, Vec<Certificate>) {
    let mut state = circle();
    let changes = [
        deploy(4),
        deploy(2),
        Change::RemoveNode { node: name("n2") },
        retire("embed"),
        Change::AdmitNode(Box::new(node("n4", &[NodeRole::Worker]))),
    ];
    let mut certificates = Vec::new();
    for change in changes {
        let certificate = certificate_naming(named(&state), &state, change);
        state.advance(verify(&state, &certificate, NOW).expect("a sound certificate")).expect("it applies");
        certificates.push(certificate);
    }
    (state, certificates)
}

/// Returns what a node that starts at the genesis finds when it is served these decisions of the history.
fn served(certificates: &[Certificate], which: &[usize]) -> Result<CircleState, human_chain::ChainError> {
    CircleState::replay(&signed(genesis()), None, which.iter().map(|at| &certificates[*at]))
}

/// Subsets that a hostile control could serve to a new node: the first version of a retired service, with its
/// own admission; the same without the removal of a node; all but the retirement.
const LEFT_OUT: [&[usize]; 3] = [&[0, 4], &[0, 1, 3, 4], &[0, 1, 2, 4]];

#[test]
fn a_history_with_decisions_left_out_is_refused() {
    let (whole, certificates) = history(CircleState::head);
    assert_eq!(served(&certificates, &[0, 1, 2, 3, 4]).as_ref(), Ok(&whole));
    for which in LEFT_OUT {
        check(&format!("{which:?}"), served(&certificates, which), "history-");
    }
    check(
        "admission last",
        served(&certificates, &[0, 4]),
        "history-shorter: ends after 1 decision; 4 are known",
    );
    check("no removal", served(&certificates, &[0, 1, 3, 4]), "history-shorter");
}

#[test]
fn without_heads_the_same_omissions_succeed() {
    let empty = circle().head();
    let (_, certificates) = history(|_| empty);
    for which in LEFT_OUT {
        let believed = served(&certificates, which).expect("versions of one subject alone are linked");
        assert!(believed.node(&name("n4")).is_some(), "{which:?}");
    }
    let rolled_back = served(&certificates, &[0, 4]).expect("only the first version is there");
    let service = rolled_back.service(&name("embed")).expect("a retired service runs again");
    assert_eq!(service.manifest.replicas.max, 4, "with slots that a later version took away");
    assert!(rolled_back.node(&name("n2")).is_some(), "and a removed node is trusted");
}

#[test]
fn a_history_in_another_order_is_refused() {
    let mut state = circle();
    let first = enact(&mut state, deploy(4), &["alice", "bob"]);
    let second = enact(&mut state, Change::RemoveNode { node: name("n2") }, &["alice", "bob"]);
    let third = enact(&mut state, retire("embed"), &["alice", "bob"]);
    let certificates = [first, second, third];
    assert!(served(&certificates, &[0, 1, 2]).is_ok());
    check("moved", served(&certificates, &[1, 0, 2]), "history-shorter");
    // Made side by side, the first two could have come in either order; the third saw one of them.
    let mut state = circle();
    let base = proposal(&state, deploy(4));
    let aside = proposal(&state, Change::RemoveNode { node: name("n2") });
    for proposal in [&base, &aside] {
        let certificate = approve(proposal, &["alice", "bob"]);
        state
            .advance(verify(&state, &certificate, NOW).expect("an older head refuses nothing"))
            .expect("applies");
    }
    let third = enact(&mut state, retire("embed"), &["alice", "bob"]);
    let certificates = [approve(&base, &["alice", "bob"]), approve(&aside, &["alice", "bob"]), third];
    check("swapped", served(&certificates, &[1, 0, 2]), "history-forked");
}

#[test]
fn proposals_run_side_by_side() {
    let mut state = circle();
    let open = [
        proposal(&state, deploy(4)),
        proposal(&state, Change::RemoveNode { node: name("n2") }),
        proposal(&state, Change::AdmitNode(Box::new(node("n4", &[NodeRole::Worker])))),
    ];
    for proposal in &open {
        let certificate = approve(proposal, &["bob", "carol"]);
        state
            .advance(verify(&state, &certificate, NOW).expect("its subject is unchanged"))
            .expect("it applies");
    }
    assert_eq!(state.length(), 3);
}

#[test]
fn the_longest_head_that_any_voter_names_counts() {
    let (whole, certificates) = history(CircleState::head);
    let before = served(&certificates, &[0, 1, 2]).expect("a prefix is sound");
    let mut certificate = certificate_naming(before.head(), &before, retire("embed"));
    assert!(verify(&before, &certificate, NOW).is_ok());
    let (alice, head) = (&secret("alice"), whole.head());
    certificate.ballots[0] = vote(alice, name("alice"), head, &certificate.proposal, Choice::Approve, NOW);
    check("one voter saw more", verify(&before, &certificate, NOW), "history-shorter: 5 are known");
    let other = HistoryHead { size: 2, ..before.head() };
    certificate.ballots[0] = vote(alice, name("alice"), other, &certificate.proposal, Choice::Approve, NOW);
    check("one voter saw another history", verify(&before, &certificate, NOW), "history-forked: the first 2");
}

#[test]
fn a_head_that_was_seen_before_is_not_forgotten() {
    let (whole, certificates) = history(CircleState::head);
    let shorter = served(&certificates, &[0, 1]).expect("a prefix is sound");
    assert_eq!(whole.check_extends(&shorter.head()), Ok(()));
    assert_eq!(whole.check_extends(&whole.head()), Ok(()));
    check("genesis and two decisions", shorter.check_extends(&whole.head()), "history-shorter: ends after 2");
    check("genesis alone", circle().check_extends(&whole.head()), "history-shorter: ends after 0");
    let mut fork = circle();
    for change in [deploy(9), deploy(4), deploy(3), deploy(2), deploy(1), deploy(5)] {
        enact(&mut fork, change, &["alice", "bob"]);
    }
    check("another history", fork.check_extends(&whole.head()), "history-forked: the first 5");
}

/// Attack: an answer of control comes from a history that lacks or changes what its reader has verified.
#[test]
fn a_claimed_head_is_compared_with_the_verified_history() {
    let (whole, certificates) = history(CircleState::head);
    check("the same", whole.check_claimed(&whole.head()), "approved");
    let head = |size, root| HistoryHead { size, root };
    let longer = head(whole.length() + 1, Digest::of(b"later"));
    check("a longer one", whole.check_claimed(&longer), "approved");
    for kept in 0..certificates.len() {
        let which: Vec<usize> = (0..kept).collect();
        let shorter = served(&certificates, &which).expect("a prefix verifies").head();
        check("a shorter one", whole.check_claimed(&shorter), "history-shorter");
        let other = head(shorter.size + 1, Digest::of(b"another"));
        check("another decision", whole.check_claimed(&other), "history-forked");
    }
}
