//! Tests of the client of the control replicas, with replicas in this process and paused time.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::agent::core::testing::{NOW, TestCircle};
use protocol::halt::HaltCursor;
use protocol::limits::POLL_WAIT_MS_MAX;
use std::sync::{Arc, Mutex};

/// Reply of a replica to every call.
#[derive(Debug, Clone, Copy)]
enum Reply {
    Answer,
    Garbage,
    /// It follows, and names this leader.
    Follows(Option<usize>),
    /// An error with this status and text.
    Problem(StatusCode, &'static str),
    BreaksConnection,
    Silent,
}

/// A client and its replicas, which record the order of the calls.
struct Replicas {
    client: AgentControlClient,
    asked: Arc<Mutex<Vec<usize>>>,
}

const BOOTED: BootTime = BootTime(1_000_000);

fn circle(count: usize) -> Vec<ControlReplica> {
    let addresses: Vec<String> = (1..=count).map(|port| format!("127.0.0.1:{port}")).collect();
    TestCircle::new(vec![], &addresses, NOW).genesis.genesis.control
}

fn client(replicas: &[ControlReplica], queues: Vec<mpsc::Sender<ControlCall>>) -> AgentControlClient {
    let clock = Clock::of_runtime(BOOTED, NOW);
    let identity = Identity::from_seed(&[7; 32]);
    AgentControlClient::new(ControlLink::InProcess(queues), &identity, replicas, clock).unwrap()
}

impl Replicas {
    fn new(replies: &[Reply]) -> Self {
        let control = circle(replies.len());
        let keys: Vec<PublicKey> = control.iter().map(|replica| replica.key).collect();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let serve = |(index, reply): (usize, &Reply)| {
            let (queue, calls) = mpsc::channel(1);
            tokio::spawn(serve(index, *reply, keys.clone(), calls, asked.clone()));
            queue
        };
        let queues = replies.iter().enumerate().map(serve).collect();
        Self { client: client(&control, queues), asked }
    }

    /// Makes a request; returns the outcome as text, and the replicas in the order in which they were asked.
    async fn ask(&self) -> (String, Vec<usize>) {
        let outcome = self.client.ask::<NotLeader>("/agent/v1/test", Bytes::new(), 64, REQUEST_LIMIT).await;
        let text = match outcome {
            RequestOutcome::Answered(answer) => {
                format!("answered after {} ms", answer.sent_at.since(BOOTED))
            }
            RequestOutcome::NotAdmitted => "not admitted".into(),
            RequestOutcome::Failed(reasons) => reasons,
        };
        (text, std::mem::take(&mut *self.asked.lock().unwrap()))
    }
}

async fn serve(
    index: usize,
    reply: Reply,
    keys: Vec<PublicKey>,
    mut calls: mpsc::Receiver<ControlCall>,
    asked: Arc<Mutex<Vec<usize>>>,
) {
    let mut unanswered = Vec::new();
    while let Some(call) = calls.recv().await {
        asked.lock().unwrap().push(index);
        let (status, body) = match reply {
            Reply::Answer => (StatusCode::OK, canonical::to_bytes(&NotLeader { leader: None })),
            Reply::Garbage => (StatusCode::OK, b"garbage".to_vec()),
            Reply::Follows(leader) => {
                let leader = leader.map(|leader| keys[leader]);
                (StatusCode::MISDIRECTED_REQUEST, canonical::to_bytes(&NotLeader { leader }))
            }
            Reply::Problem(status, text) => (status, text.into()),
            Reply::BreaksConnection => continue,
            Reply::Silent => {
                unanswered.push(call.answer);
                continue;
            }
        };
        let mut response = Response::new(Bytes::from(body));
        *response.status_mut() = status;
        let _ = call.answer.send(response);
    }
}

#[tokio::test(start_paused = true)]
async fn the_leader_is_found_and_asked_first_from_then_on() {
    use Reply::{Answer, Follows, Silent};
    for (replies, first, second) in [
        ([Answer, Answer, Answer], vec![0], vec![0]),
        ([Follows(Some(2)), Answer, Answer], vec![0, 2], vec![2]),
        ([Follows(None), Answer, Answer], vec![0, 1], vec![1]),
        ([Follows(Some(1)), Follows(Some(0)), Answer], vec![0, 1, 2], vec![2]),
        ([Follows(Some(0)), Answer, Answer], vec![0, 1], vec![1]),
        ([Silent, Silent, Answer], vec![0, 1, 2], vec![2]),
    ] {
        let control = Replicas::new(&replies);
        for expected in [first, second] {
            let (outcome, asked) = control.ask().await;
            assert!(outcome.starts_with("answered"), "{replies:?}: {outcome}");
            assert_eq!(asked, expected, "{replies:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_counts_from_the_request_that_it_answers() {
    let control = Replicas::new(&[Reply::Silent, Reply::Answer]);
    assert_eq!(
        control.ask().await.0,
        "answered after 1300 ms",
        "the first replica's time is not the lease's"
    );
}

/// A replica may hold a poll for long, and a hostile one forever. Each ends, and no sync waits for it.
#[tokio::test(start_paused = true)]
async fn a_poll_that_a_replica_never_answers_ends_after_its_limit() {
    let control = Replicas::new(&[Reply::Silent, Reply::Answer]);
    let began = tokio::time::Instant::now();
    let request = HaltsRequest { after: HaltCursor::default(), wait_ms: POLL_WAIT_MS_MAX };
    let poll = async { (control.client.halts_of(0, &request).await, began.elapsed()) };
    let sync = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        control.ask().await
    };
    let (polled, sync) = tokio::join!(poll, sync);
    assert_eq!(polled, (None, POLL_LIMIT));
    assert!(POLL_LIMIT > Duration::from_millis(POLL_WAIT_MS_MAX.into()), "an honest answer arrives");
    assert_eq!(sync.0, "answered after 1400 ms");
}

#[tokio::test(start_paused = true)]
async fn a_failed_round_asks_each_once_and_names_every_reason() {
    let unavailable = Reply::Problem(StatusCode::SERVICE_UNAVAILABLE, "no leader");
    let control = Replicas::new(&[Reply::BreaksConnection, Reply::Garbage, unavailable, Reply::Silent]);
    let (reasons, asked) = control.ask().await;
    assert_eq!(asked, [0, 1, 2, 3]);
    let reasons: Vec<&str> = reasons.split("; ").collect();
    assert_eq!(reasons.len(), 4, "{reasons:?}");
    assert_eq!(reasons[0], "127.0.0.1:1: the connection broke");
    assert!(reasons[1].starts_with("127.0.0.1:2: "), "{reasons:?}");
    assert_eq!(reasons[2], "127.0.0.1:3: 503 Service Unavailable: no leader");
    assert_eq!(reasons[3], "127.0.0.1:4: no answer in time");
    let (_, asked) = control.ask().await;
    assert_eq!(asked, [3, 0, 1, 2], "the next round begins with another replica");
}

/// Reply of a replica that does not know the admission of this node.
const DENIES: Reply = Reply::Problem(StatusCode::FORBIDDEN, "{\"code\":\"node-not-admitted\"}");

/// The attack: replicas that are behind, or hostile, deny the admission of a node, and are asked first. One
/// replica that knows better is enough, and is asked first from then on.
#[tokio::test(start_paused = true)]
async fn attack_a_replica_that_denies_the_admission_keeps_no_node_from_the_others() {
    use Reply::{Answer, Follows, Silent};
    for (replies, first) in [
        ([DENIES, Answer, Answer], vec![0, 1]),
        ([DENIES, DENIES, Answer], vec![0, 1, 2]),
        ([DENIES, Follows(Some(2)), Answer], vec![0, 1, 2]),
        ([DENIES, Follows(Some(0)), Answer], vec![0, 1, 2]),
        ([DENIES, Silent, Answer], vec![0, 1, 2]),
    ] {
        let (control, knows) = (Replicas::new(&replies), first.len() - 1);
        for expected in [first, vec![knows]] {
            let (outcome, asked) = control.ask().await;
            assert!(outcome.starts_with("answered"), "{replies:?}: {outcome}");
            assert_eq!(asked, expected, "{replies:?}");
        }
    }
}

/// The attack: a replica denies the admission as the last one of a round that failed, and would be asked
/// first from then on, or after another one whose answer was refused.
#[tokio::test(start_paused = true)]
async fn attack_a_replica_that_denies_the_admission_is_not_preferred() {
    use Reply::{Follows, Silent};
    for replies in [[Silent, Silent, DENIES], [Silent, Follows(Some(2)), DENIES]] {
        let control = Replicas::new(&replies);
        control.ask().await;
        assert_eq!(control.ask().await.1, [0, 1, 2], "{replies:?}");
        control.client.ask_another_than(1);
        assert_eq!(control.ask().await.1, [0, 1, 2], "{replies:?}");
    }
    // The positive control: one that fails in another way is not the last.
    let control = Replicas::new(&[Silent, Silent, Reply::BreaksConnection]);
    control.ask().await;
    assert_eq!(control.ask().await.1, [2, 0, 1]);
}

#[tokio::test(start_paused = true)]
async fn a_node_is_not_admitted_once_a_replica_says_so_and_no_other_answers() {
    use Reply::{Follows, Silent};
    for (replies, expected) in [
        ([DENIES, DENIES, DENIES], "not admitted"),
        ([DENIES, Follows(Some(0)), Follows(Some(0))], "not admitted"),
        ([Follows(Some(2)), Silent, DENIES], "not admitted"),
        // The positive control: none says so.
        ([Follows(None), Follows(None), Follows(None)], "127.0.0.1:1: does not lead; "),
    ] {
        let control = Replicas::new(&replies);
        let (outcome, mut asked) = control.ask().await;
        assert!(outcome.starts_with(expected), "{replies:?}: {outcome}");
        asked.sort_unstable();
        assert_eq!(asked, [0, 1, 2], "each once: {replies:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn only_the_code_says_that_a_node_is_not_admitted() {
    assert_eq!(Replicas::new(&[DENIES]).ask().await, ("not admitted".to_string(), vec![0]));
    for other in [
        Reply::Problem(StatusCode::FORBIDDEN, "{\"code\":\"another\"}"),
        Reply::Problem(StatusCode::BAD_GATEWAY, "node-not-admitted"),
    ] {
        let (outcome, asked) = Replicas::new(&[other, Reply::Answer]).ask().await;
        assert_eq!((outcome.as_str(), asked), ("answered after 0 ms", vec![0, 1]), "{other:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_long_error_text_is_cut() {
    let long: &'static str = Box::leak("x".repeat(3 * PROBLEM_BYTES_MAX).into_boxed_str());
    let control = Replicas::new(&[Reply::Problem(StatusCode::BAD_GATEWAY, long)]);
    let (reasons, _) = control.ask().await;
    assert_eq!(reasons.matches('x').count(), PROBLEM_BYTES_MAX);
}

#[tokio::test]
async fn a_replica_that_takes_no_calls_is_passed_over() {
    let (open, mut calls) = mpsc::channel::<ControlCall>(1);
    let (closed, _) = mpsc::channel(1);
    let client = client(&circle(2), vec![closed, open]);
    let answer = tokio::spawn(async move {
        let call = calls.recv().await.unwrap();
        let body = canonical::to_bytes(&NotLeader { leader: None });
        call.answer.send(Response::new(Bytes::from(body))).unwrap();
        call.path
    });
    let outcome = client.ask::<NotLeader>("/agent/v1/test", Bytes::new(), 64, REQUEST_LIMIT).await;
    assert!(matches!(outcome, RequestOutcome::Answered(..)));
    assert_eq!(answer.await.unwrap(), "/agent/v1/test");
}

#[tokio::test]
async fn every_replica_needs_a_queue() {
    let link = ControlLink::InProcess(vec![mpsc::channel(1).0]);
    let identity = Identity::from_seed(&[7; 32]);
    let error = AgentControlClient::new(link, &identity, &circle(2), Clock::machine()).unwrap_err();
    assert_eq!(error.to_string(), "configuration: 1 ways to 2 control replicas");
}
