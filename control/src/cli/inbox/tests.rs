//! Tests of the inbox against a control that shows what it likes.

use super::*;
use crate::cli::hostile::Lab;
use crate::member_key::MemberKeyFile;
use crate::testing::{SampleCircle, proposal_view};
use clap::Parser as _;
use protocol::api::ProposalState;
use protocol::governance::{Change, Proposal, SignedBallot};
use protocol::{Refusal, error_code};

async fn inbox(lab: &Lab, member: Option<usize>) -> Inbox {
    let session = Session::open(&lab.context()).await.expect("an honest history");
    let load = |at: usize| {
        let file = lab.path(&format!("inbox-{at}.key"));
        lab.circle.members[at].save(file.as_ref()).expect("saved");
        MemberKey::load(file.as_ref()).expect("readable")
    };
    let link = "https://one.example.org/".into();
    let clock = Clock::machine();
    Inbox { session, member: member.map(load), link, announced: Announced::default(), clock }
}

fn ids(list: &[Announcement]) -> Vec<protocol::ProposalId> {
    list.iter().map(|item| item.id).collect()
}

#[tokio::test]
async fn a_proposal_is_announced_once_to_the_members_it_waits_for() {
    let lab = Lab::new(SampleCircle::founded()).await;
    let mut alice = inbox(&lab, Some(0)).await;
    let mut reader = inbox(&lab, None).await;
    assert_eq!(alice.look().await.expect("an answer"), []);
    let first = lab.circle.proposal("first");
    lab.show(vec![proposal_view(&first, vec![])]);
    let found = alice.look().await.expect("an answer");
    assert_eq!(ids(&found), [first.id()]);
    assert_eq!(found[0].words, human_chain::render(&first).words);
    assert_eq!(found[0].link, format!("https://one.example.org/console/proposals/{}", first.id()));
    assert_eq!(alice.look().await.expect("an answer"), [], "once");
    let second = lab.circle.proposal("second");
    let mut decided = proposal_view(&first, vec![]);
    decided.state = ProposalState::Approved;
    lab.show(vec![decided, proposal_view(&second, vec![lab.circle.ballot(0, &second, Choice::Approve)])]);
    assert_eq!(alice.look().await.expect("an answer"), [], "she has voted");
    assert_eq!(ids(&reader.look().await.expect("an answer")), [second.id()], "a reader sees what is open");
}

/// Attack: control shows another proposal under an id, and a quorum that no ballot bears out.
#[tokio::test]
async fn nothing_is_announced_by_the_word_of_control() {
    let lab = Lab::new(SampleCircle::founded()).await;
    let (asked, other) = (lab.circle.proposal("asked"), lab.circle.proposal("other"));
    let mut forged = proposal_view(&other, vec![]);
    forged.id = asked.id();
    lab.show(vec![forged]);
    let mut alice = inbox(&lab, Some(0)).await;
    let error = alice.look().await.expect_err("forged");
    assert_eq!(
        error.downcast_ref::<Refusal>().map(|refusal| refusal.code),
        Some(error_code::PROPOSAL_MISMATCH)
    );
    assert!(!code_of(&error).is_some_and(is_silence), "the watcher ends, and says why");
    // Positive control: under its own id, with votes that were not cast, it still waits.
    let mut claimed = proposal_view(&other, vec![]);
    claimed.missing = vec![];
    lab.show(vec![claimed]);
    assert_eq!(ids(&alice.look().await.expect("an answer")), [other.id()]);
}

/// Returns a change that gives carol other keys, made at this time, with the approvals of alice and bob.
fn rotation(lab: &Lab, made_at: Millis) -> (Proposal, Vec<SignedBallot>) {
    let entry = MemberKeyFile::generate(lab.circle.members[2].member.clone()).proven();
    let mut members: Vec<_> = lab.circle.state.members().cloned().collect();
    members[2] = entry.member.clone();
    let (policy, proofs) = (lab.circle.state.policy().clone(), [(entry.member.id, entry.proof)].into());
    let change = Change::SetMembers { members, policy, proofs };
    let proposal = lab.circle.proposal_at(change, "other keys", made_at);
    let ballot = |at| lab.circle.ballot_at(at, &proposal, Choice::Approve, made_at);
    let ballots = [0, 1].map(ballot).to_vec();
    (proposal, ballots)
}

/// A draft, and a change that can be vetoed, are announced too, each once; the change also to members in
/// whose names it was approved. Attack: control calls a change approved that no ballots carry.
#[tokio::test]
async fn drafts_and_open_vetoes_are_announced_as_well() {
    let lab = Lab::new(SampleCircle::founded()).await;
    let mut alice = inbox(&lab, Some(0)).await;
    let first = lab.circle.proposal("first");
    for (state, stage) in
        [(ProposalState::Draft, WaitingStage::Draft), (ProposalState::Open, WaitingStage::Vote)]
    {
        let mut view = proposal_view(&first, vec![]);
        view.state = state;
        lab.show(vec![view]);
        let found = alice.look().await.expect("an answer");
        assert_eq!((ids(&found), found[0].stage), (vec![first.id()], stage));
        assert_eq!(alice.look().await.expect("an answer"), [], "once");
    }
    let now = host::wall_clock();
    let (change, ballots) = rotation(&lab, now);
    let show = |ballots: &[SignedBallot]| {
        let mut view = proposal_view(&change, ballots.to_vec());
        view.state = ProposalState::Waiting;
        lab.show(vec![view]);
    };
    show(&ballots[..1]);
    assert_eq!(alice.look().await.expect("an answer"), [], "one ballot of two carries nothing");
    show(&ballots);
    let found = alice.look().await.expect("an answer");
    assert_eq!((ids(&found), found[0].stage), (vec![change.id()], WaitingStage::Veto));
    let waiting = waiting_ms(&lab.circle.state, &change.change);
    assert_eq!(found[0].expires_at, now.plus(waiting), "from the last approval on");
    assert_eq!(alice.look().await.expect("an answer"), [], "once");
}

/// Attack: the holder of stolen keys antedates its approvals, so that by them the time for a veto is over.
/// Control counts from its own clock, and so does the notice, for a waiting time at most.
#[tokio::test]
async fn antedated_approvals_hide_no_veto() {
    let lab = Lab::new(SampleCircle::founded()).await;
    let now = host::wall_clock();
    let (change, ballots) = rotation(&lab, Millis(now.0 - 3 * 86_400_000));
    let waiting = waiting_ms(&lab.circle.state, &change.change);
    for (claimed, announced) in
        [(None, None), (Some(now.plus(60_000)), Some(60_000)), (Some(Millis(u64::MAX)), Some(waiting))]
    {
        let mut reader = inbox(&lab, None).await;
        let mut view = proposal_view(&change, ballots.clone());
        (view.state, view.takes_effect_at) = (ProposalState::Waiting, claimed);
        lab.show(vec![view]);
        let found = reader.look().await.expect("an answer");
        let left = found.first().map(|one| one.expires_at.0 - now.0);
        // The watcher reads the clock later than this test.
        let is_expected = match (left, announced) {
            (Some(left), Some(announced)) => (announced..announced + 60_000).contains(&left),
            (left, announced) => left == announced,
        };
        assert!(is_expected, "{claimed:?}: {left:?}, not {announced:?}");
    }
}

#[tokio::test]
async fn the_list_is_printed_and_a_webhook_needs_its_secret() {
    let lab = Lab::new(SampleCircle::founded()).await;
    lab.show(vec![proposal_view(&lab.circle.proposal("first"), vec![])]);
    assert_eq!(lab.run(&["inbox"]).await, Ok(()));
    let hook = ["inbox", "--watch", "--webhook", "https://chat.example.org/"];
    assert!(crate::cli::Cli::try_parse_from([&["quorate"], &hook[..]].concat()).is_err(), "no secret");
    let secret = lab.path("secret");
    let words = [&hook[..], &["--webhook-secret-file", &secret]].concat();
    assert_eq!(lab.run(&words).await, Err(Some(error_code::KEY_FILE_UNUSABLE)));
    let mut alice = inbox(&lab, Some(0)).await;
    let list = alice.look().await.expect("an answer");
    let text = list_text(&list);
    assert!(text.contains(&list[0].id.short()) && text.contains(&list[0].words.join(" ")), "{text}");
    assert_eq!(list_text(&[]), "nothing waits for you");
}
