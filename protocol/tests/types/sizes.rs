//! Tests of size limits at their edges: the largest value of each kind fits within the limit of its kind.

use protocol::agent::{LOG_LINES_MAX, WorkerLine};
use protocol::agent_state::{ORDER_BOOK_BYTES_MAX, SlotFence};
use protocol::artifact::{ARTIFACT_WORDS_BYTES_MAX, ARTIFACT_WORDS_MAX};
use protocol::canonical::to_bytes;
use protocol::comment::{
    COMMENT_BYTES_MAX, COMMENT_TEXT_BYTES_MAX, Comment, CommentSignature, SignedComment,
};
use protocol::governance::{
    ActionClass, Ballot, BallotSignature, Choice, HistoryHead, LogEvidence, Member, Policy, Quorum,
    SignedBallot, SubjectVersion,
};
use protocol::halt::{HALT_BYTES_MAX, HALT_REASON_BYTES_MAX, Halt, HaltScope, HaltSignature, SignedHalt};
use protocol::job::{JobSubmission, SignedSubmission, Submitter};
use protocol::keys::{
    ByteString, EncryptionKey, HybridSignature, ML_DSA_65_PUBLIC_KEY_LENGTH, ML_DSA_65_SIGNATURE_LENGTH,
    ML_KEM_768_PUBLIC_KEY_LENGTH, MemberKeys,
};
use protocol::limits::*;
use protocol::manifest::{ArtifactChoice, check_command_words};
use protocol::model::{Segment, is_safe_path};
use protocol::order::{SignedTicket, TICKET_BYTES_MAX, Ticket};
use protocol::worker::{SegmentRange, WORKER_MANIFEST_BYTES_MAX, WorkerMetrics};
use protocol::{
    ArtifactRoot, BootTime, CircleId, Digest, Epoch, Fence, MemberId, Millis, NodeId, PasskeyAssertion,
    PasskeyPolicy, ProposalId, PublicKey, Signature, SlotIndex,
};
use std::collections::BTreeMap;
use std::str::FromStr;

const KEY: PublicKey = PublicKey([0xff; 32]);
const DIGEST: Digest = Digest([0xff; 32]);

/// Returns the longest name of any type.
fn longest<T: FromStr<Err = String>>() -> T {
    "x".repeat(NAME_BYTES_MAX).parse().unwrap()
}

fn bytes_of(length: usize) -> ByteString {
    ByteString(vec![0xff; length])
}

fn signature() -> HybridSignature {
    HybridSignature { ed25519: Signature([0xff; 64]), ml_dsa: bytes_of(ML_DSA_65_SIGNATURE_LENGTH) }
}

fn assertion() -> PasskeyAssertion {
    PasskeyAssertion {
        credential: bytes_of(PASSKEY_CREDENTIAL_BYTES_MAX),
        authenticator_data: bytes_of(PASSKEY_AUTHENTICATOR_DATA_BYTES_MAX),
        client_data: bytes_of(PASSKEY_CLIENT_DATA_BYTES_MAX),
        signature: bytes_of(PASSKEY_SIGNATURE_BYTES_MAX),
    }
}

#[test]
fn the_largest_submission_fits() {
    let parameter = |number: usize| {
        let name = format!("{number:0>63}").parse().unwrap();
        (name, "x".repeat(PARAMETER_BYTES_MAX))
    };
    let word = "x".repeat(ARTIFACT_WORDS_BYTES_MAX / ARTIFACT_WORDS_MAX - 1);
    let submission = JobSubmission {
        circle: CircleId(DIGEST),
        job: longest(),
        certificate: DIGEST,
        idempotency: DIGEST,
        parameters: (0..JOB_LIST_MAX).map(parameter).collect(),
        artifact: Some(ArtifactChoice { name: longest(), root: ArtifactRoot(DIGEST) }),
        command: Some(vec![word; ARTIFACT_WORDS_MAX]),
        priority: u32::MAX,
        submitter: Submitter::Member(longest()),
        issued_at: Millis(u64::MAX),
        deadline: Millis(u64::MAX),
        after: vec![],
        array: None,
    };
    check_command_words(submission.command.as_ref().unwrap()).unwrap();
    let bytes = to_bytes(&SignedSubmission { submission, signature: Some(signature()) }).len();
    assert!(bytes <= SUBMISSION_BYTES_MAX && bytes > SUBMISSION_BYTES_MAX - 32_768, "{bytes}");
}

#[test]
fn the_longest_name_is_the_last_that_is_one() {
    assert!("x".repeat(NAME_BYTES_MAX).parse::<protocol::ServiceName>().is_ok());
    let reason = "x".repeat(NAME_BYTES_MAX + 1).parse::<protocol::ServiceName>().unwrap_err();
    assert!(reason.contains(&NAME_BYTES_MAX.to_string()), "{reason}");
}

#[test]
fn the_largest_member_ballot_and_rule_fit() {
    let encryption = EncryptionKey { x25519: KEY, ml_kem: bytes_of(ML_KEM_768_PUBLIC_KEY_LENGTH) };
    let keys = MemberKeys { ed25519: KEY, ml_dsa: bytes_of(ML_DSA_65_PUBLIC_KEY_LENGTH), encryption };
    let member = to_bytes(&Member { id: longest(), keys }).len();
    assert!(member <= MEMBER_BYTES_MAX && member > MEMBER_BYTES_MAX - 200, "{member}");
    let ballot = Ballot {
        proposal: ProposalId(DIGEST),
        rendering: DIGEST,
        renderer_version: u32::MAX,
        choice: Choice::Approve,
        member: longest(),
        epoch: Epoch(u64::MAX),
        history: HistoryHead { size: u64::MAX, root: DIGEST },
        issued_at: Millis(u64::MAX),
        reason: "x".repeat(BALLOT_REASON_BYTES_MAX),
    };
    for signature in [BallotSignature::Hybrid(signature()), BallotSignature::Passkey(assertion())] {
        let ballot = to_bytes(&SignedBallot { ballot: ballot.clone(), signature }).len();
        assert!(ballot <= BALLOT_BYTES_MAX, "{ballot}");
    }
    let proof: BTreeMap<MemberId, HybridSignature> = [(longest(), signature())].into();
    let proof = to_bytes(&proof).len();
    assert!(proof <= MEMBER_PROOF_BYTES_MAX && proof > MEMBER_PROOF_BYTES_MAX - 300, "{proof}");
    let alone = |part, _| Quorum::Threshold { required: u32::MAX, of: vec![part] };
    let rule = (0..QUORUM_DEPTH_MAX).fold(Quorum::Member(longest()), alone);
    let rule = to_bytes(&rule).len();
    assert!(rule <= QUORUM_MEMBER_BYTES_MAX, "{rule}");
    assert!(MEMBERS_MAX * (member + 2 * rule) <= ROSTER_BYTES_MAX);
}

#[test]
fn the_largest_halt_fits() {
    let halt = Halt {
        circle: CircleId(DIGEST),
        member: longest(),
        signer: PublicKey([255; 32]),
        scope: HaltScope::Region("x".repeat(LABEL_BYTES_MAX)),
        reason: "x".repeat(HALT_REASON_BYTES_MAX),
        issued_at: Millis(u64::MAX),
        nonce: DIGEST,
    };
    for signature in [HaltSignature::Hybrid(signature()), HaltSignature::Passkey(assertion())] {
        let length = to_bytes(&SignedHalt { halt: halt.clone(), signature }).len();
        assert!(length <= HALT_BYTES_MAX && length > HALT_BYTES_MAX - 768, "{length}");
    }
}

#[test]
fn the_largest_comment_fits() {
    let comment = Comment {
        proposal: ProposalId(DIGEST),
        member: longest(),
        answers: Some(protocol::CommentId(DIGEST)),
        text: "x".repeat(COMMENT_TEXT_BYTES_MAX),
        issued_at: Millis(u64::MAX),
    };
    for signature in [CommentSignature::Hybrid(signature()), CommentSignature::Passkey(assertion())] {
        let length = to_bytes(&SignedComment { comment: comment.clone(), signature }).len();
        assert!(length <= COMMENT_BYTES_MAX && length > COMMENT_BYTES_MAX - 1024, "{length}");
    }
}

#[test]
fn the_largest_policy_for_passkeys_fits() {
    let origin = |number: usize| format!("https://{number:0>width$}:65535", width = ORIGIN_BYTES_MAX - 14);
    let origins: std::collections::BTreeSet<String> = (0..PASSKEY_ORIGINS_MAX).map(origin).collect();
    assert_eq!((origins.len(), origins.first().unwrap().len()), (PASSKEY_ORIGINS_MAX, ORIGIN_BYTES_MAX));
    let rp_id = "x".repeat(ORIGIN_BYTES_MAX - 14);
    let passkeys = Some(PasskeyPolicy { rp_id, origins, routine: true });
    let rules = BTreeMap::from([(ActionClass::Sensitive, Quorum::Member(longest()))]);
    let of = |passkeys| {
        let (quorums, proposer_counts) = (rules.clone(), true);
        to_bytes(&Policy { quorums, passkeys, veto_seconds: 0, proposer_counts }).len()
    };
    let (bare, full) = (of(None), of(passkeys));
    assert!(full - bare <= PASSKEY_POLICY_BYTES_MAX, "{}", full - bare);
}

#[test]
fn the_frame_of_the_largest_proposal_and_bundle_fits() {
    let subject = format!("service/{}", "x".repeat(NAME_BYTES_MAX));
    let subject = SubjectVersion { subject, version: u64::MAX, value: Some(DIGEST) };
    let subject = to_bytes(&subject).len();
    let others = 8 * (1 + "expires_at".len()) + 2 * 34 + 3 * 9;
    assert!(subject + others <= PROPOSAL_FRAME_BYTES_MAX, "{subject} and {others}");
    let evidence = to_bytes(&LogEvidence { sequence: u64::MAX }).len();
    let frame = evidence + to_bytes("certificate").len() + to_bytes("log_evidence").len() + 32;
    assert!(CERTIFICATE_BYTES_MAX + frame <= BUNDLE_BYTES_MAX, "{frame}");
}

#[test]
fn the_largest_ticket_fits() {
    let ticket = Ticket {
        service: longest(),
        slot: SlotIndex(u32::MAX),
        fence: Fence::new(u64::MAX, u64::MAX),
        node: NodeId(KEY),
        worker: KEY,
        gateway: KEY,
        expires_at: Millis(u64::MAX),
        lease_until_boottime_ms: BootTime(u64::MAX),
    };
    let bytes = to_bytes(&SignedTicket { ticket, signature: Signature([0xff; 64]) }).len();
    assert!(bytes <= TICKET_BYTES_MAX, "{bytes}");
}

#[test]
fn the_longest_line_of_metrics_is_written_at_once() {
    let metrics = WorkerMetrics {
        at: Millis(u64::MAX),
        requests_running: u32::MAX,
        requests_waiting: u32::MAX,
        requests_total: u64::MAX,
        prompt_tokens_total: u64::MAX,
        generation_tokens_total: u64::MAX,
        kv_cache_usage_permille: u32::MAX,
        time_to_first_token_p50_us: u64::MAX,
    };
    let line = serde_json::to_string(&metrics).unwrap();
    assert!(line.len() < METRICS_LINE_BYTES_MAX, "{}", line.len());
    assert!(!line.contains('\n'), "one line");
}

#[test]
fn the_log_lines_of_a_sync_leave_room_for_the_rest() {
    let line = WorkerLine {
        service: longest(),
        slot: SlotIndex(u32::MAX),
        sequence: u64::MAX,
        at: Millis(u64::MAX),
        text: "\u{1}".repeat(4096),
    };
    assert!(LOG_LINES_MAX * to_bytes(&line).len() <= SYNC_BYTES_MAX / 16);
}

#[test]
fn an_order_book_holds_the_fences_of_a_nodes_lifetime() {
    let fence =
        SlotFence { service: longest(), slot: SlotIndex(u32::MAX), fence: Fence::new(u64::MAX, u64::MAX) };
    assert!(200_000 * to_bytes(&fence).len() <= ORDER_BOOK_BYTES_MAX);
}

/// A model of 250 GB in segments of the maximum size, with the largest numbers.
#[test]
fn manifests_describe_a_model_of_250_gigabytes() {
    let count = 250_000_000_000_usize.div_ceil(SEGMENT_BYTES_MAX);
    let (offset, length) = (u64::MAX, u32::MAX);
    let range = to_bytes(&SegmentRange { offset, length }).len();
    assert!(count * range <= WORKER_MANIFEST_BYTES_MAX / 2, "{range} bytes a segment");
    let segment = to_bytes(&Segment { offset, length, digest: DIGEST, shards: vec![DIGEST; 4] }).len();
    let index = to_bytes(&u32::MAX).len();
    assert!(count * (segment + index) <= MODEL_MANIFEST_BYTES_MAX, "{segment} bytes a segment");
}

#[test]
fn the_longest_path_is_the_last_that_is_safe() {
    for (length, expected) in [(1, true), (511, true), (512, true), (513, false)] {
        assert_eq!(is_safe_path(&"p".repeat(length)), expected, "{length}");
    }
    assert!(is_safe_path(&"é".repeat(256)) && !is_safe_path(&"é".repeat(257)), "a limit of bytes");
}
