//! Tests of the watcher's loop, in simulated time: simulated replicas, simulated receivers, and a record on
//! disk that outlives each watcher.

use super::*;
use crate::cli::inbox::announce::AttemptError;
use crate::client::simulated::{Does, SimulatedReplicas};
use crate::head::HeadFile;
use crate::testing::{SampleCircle, history_page, proposal_view};
use bytes::Bytes;
use protocol::api::ProposalState;
use protocol::governance::Proposal;
use protocol::{BootTime, ProposalId};
use std::sync::Mutex;

/// Behaviour of a receiver.
#[derive(Debug, Clone, Copy)]
enum Takes {
    /// Takes what it gets.
    All,
    /// Fails this number of times for each watcher's process, then takes.
    After(usize),
    /// Never answers.
    Nothing,
    /// Wants no more.
    Refuses,
}

/// A receiver of notices.
#[derive(Debug, Clone)]
pub(super) struct Receiver {
    pub(super) name: &'static str,
    takes: Takes,
    /// Time of each attempt since the test began in seconds, its proposal, and whether it was taken.
    attempts: Arc<Mutex<Vec<(u64, ProposalId, bool)>>>,
    began: Instant,
}

impl Receiver {
    fn new(name: &'static str, takes: Takes) -> Self {
        Self { name, takes, attempts: Arc::default(), began: Instant::now() }
    }

    pub(super) async fn take(&self, announcement: &Announcement) -> Result<(), AttemptError> {
        let outcome = {
            let mut attempts = self.attempts.lock().expect("no panic");
            let before = attempts.iter().filter(|(_, id, _)| *id == announcement.id).count();
            let is_taken = match self.takes {
                Takes::All => true,
                Takes::After(failures) => before >= failures,
                Takes::Nothing | Takes::Refuses => false,
            };
            attempts.push((self.began.elapsed().as_secs(), announcement.id, is_taken));
            is_taken
        };
        match (outcome, self.takes) {
            (true, _) => Ok(()),
            (false, Takes::Nothing) => std::future::pending().await,
            (false, Takes::Refuses) => Err(AttemptError::Refused("gone".into())),
            (false, _) => Err(AttemptError::Retry("busy".into())),
        }
    }

    /// Returns the times of the attempts for a proposal, in seconds.
    fn times(&self, proposal: &Proposal) -> Vec<u64> {
        let attempts = self.attempts.lock().expect("no panic");
        attempts.iter().filter(|(_, id, _)| *id == proposal.id()).map(|(at, _, _)| *at).collect()
    }

    fn taken(&self, proposal: &Proposal) -> usize {
        let attempts = self.attempts.lock().expect("no panic");
        attempts.iter().filter(|(_, id, taken)| *id == proposal.id() && *taken).count()
    }
}

/// A circle, one simulated replica, and the folder in which watchers keep their record.
struct Site {
    circle: SampleCircle,
    folder: tempfile::TempDir,
    replicas: Arc<SimulatedReplicas>,
    client: crate::client::ControlClient,
    shown: Arc<Mutex<Vec<ProposalView>>>,
    clock: Clock,
}

impl Site {
    fn new() -> Self {
        let circle = SampleCircle::founded();
        let (client, replicas) = SimulatedReplicas::client(vec![Does::Leads(Duration::ZERO)]);
        let shown: Arc<Mutex<Vec<ProposalView>>> = Arc::default();
        let (history, listed) = (circle.history.clone(), shown.clone());
        replicas.serve(move |path| {
            let after = path.split("after=").nth(1).and_then(|after| after.parse().ok());
            let views = || listed.lock().expect("no panic").clone();
            let body = match path.split('?').next()? {
                "/v1/history" => serde_json::to_vec(&history_page(&history, after)),
                "/v1/proposals" => serde_json::to_vec(&Page::<ProposalView>::whole(views())),
                _ => return None,
            };
            Some(Bytes::from(body.expect("JSON")))
        });
        let clock = Clock::of_runtime(BootTime(0), host::wall_clock());
        let folder = tempfile::tempdir().expect("temporary directory");
        Self { circle, folder, replicas, client, shown, clock }
    }

    fn show(&self, reason: &str) -> Proposal {
        let proposal = self.circle.proposal(reason);
        self.shown.lock().expect("no panic").push(proposal_view(&proposal, vec![]));
        proposal
    }

    /// Shows every proposal in this state.
    fn turn_to(&self, state: ProposalState) {
        self.shown.lock().expect("no panic").iter_mut().for_each(|view| view.state = state);
    }

    /// Runs a watcher for this time; it ends as a killed process does.
    async fn watch(&self, receivers: &[&Receiver], seconds: u64) {
        let heads = HeadFile::beside(&self.folder.path().join("context.json"), self.circle.state.id());
        let session = Session::with_client(self.client.clone(), self.circle.state.id(), heads).await;
        let (session, clock) = (session.expect("an honest history"), self.clock.clone());
        let link = "https://one.example.org".into();
        let mut inbox = Inbox { session, member: None, link, announced: Announced::default(), clock };
        let mut delivered =
            DeliveredNotices::open_in(&self.folder.path().join("inbox"), self.circle.state.id());
        let notice = |receiver: &&Receiver| Arc::new(Notice::Simulated((*receiver).clone()));
        let notices: Vec<Arc<Notice>> = receivers.iter().map(notice).collect();
        let watching = watch(&mut inbox, &notices, &mut delivered, Output::Json);
        let ended = tokio::time::timeout(Duration::from_secs(seconds), watching).await;
        assert!(ended.is_err(), "the watcher ended before it was killed: {ended:?}");
    }
}

/// Each proposal is noticed once on each way, for any number of looks and of watchers.
#[tokio::test(start_paused = true)]
async fn each_proposal_is_noticed_once_and_after_a_restart_too() {
    let site = Site::new();
    let (hook, mail) = (Receiver::new("hook", Takes::All), Receiver::new("mail", Takes::All));
    let first = site.show("first");
    site.watch(&[&hook, &mail], 60).await;
    let second = site.show("second");
    site.watch(&[&hook, &mail], 60).await;
    site.watch(&[&hook, &mail], 60).await;
    for (receiver, proposal) in [(&hook, &first), (&hook, &second), (&mail, &first), (&mail, &second)] {
        assert_eq!(receiver.times(proposal).len(), 1, "{} {:?}", receiver.name, receiver.attempts);
    }
    // A way that is new gets what waits.
    let other = Receiver::new("another hook", Takes::All);
    site.watch(&[&other], 10).await;
    assert_eq!((other.taken(&first), other.taken(&second)), (1, 1));
    // Positive control: without the record, the next watcher sends all of it again.
    std::fs::remove_dir_all(site.folder.path().join("inbox")).expect("removed");
    site.watch(&[&hook], 10).await;
    assert_eq!((hook.taken(&first), hook.taken(&second)), (2, 2));
}

/// A draft is noticed once, after a restart too, and once more when a member has opened it.
#[tokio::test(start_paused = true)]
async fn a_draft_is_noticed_once_and_again_when_it_is_opened() {
    let site = Site::new();
    let hook = Receiver::new("hook", Takes::All);
    let proposal = site.show("first");
    for (state, noticed) in [(ProposalState::Draft, 1), (ProposalState::Open, 2), (ProposalState::Draft, 2)] {
        site.turn_to(state);
        for _ in 0..2 {
            site.watch(&[&hook], 60).await;
        }
        assert_eq!(hook.times(&proposal).len(), noticed, "{state:?}: {:?}", hook.attempts);
    }
}

/// A receiver that fails is asked again, ever more seldom, and delays no other way and no later proposal.
#[tokio::test(start_paused = true)]
async fn a_receiver_that_fails_is_asked_seldom_and_delays_no_other() {
    let site = Site::new();
    let busy = Receiver::new("busy", Takes::After(3));
    let (silent, mail) = (Receiver::new("silent", Takes::Nothing), Receiver::new("mail", Takes::All));
    let gone = Receiver::new("gone", Takes::Refuses);
    let first = site.show("first");
    site.watch(&[&silent, &busy, &gone, &mail], 20).await;
    assert_eq!((mail.times(&first), busy.times(&first)), (vec![0], vec![0, 5, 15]));
    let second = site.show("second");
    site.watch(&[&silent, &busy, &gone, &mail], 100).await;
    assert_eq!((mail.taken(&first), mail.taken(&second)), (1, 1));
    assert_eq!(mail.times(&second), [20], "what is silent or busy delays it for no moment");
    assert_eq!((busy.taken(&first), busy.taken(&second)), (1, 1), "{:?}", busy.attempts);
    assert_eq!(gone.times(&first).len(), 1, "a receiver that wants no more is asked by no later watcher");
    assert!(silent.taken(&first) == 0 && silent.times(&first).len() == 2, "once by each watcher");
}

/// Attempts end with the vote, and the watcher continues.
#[tokio::test(start_paused = true)]
async fn the_attempts_of_a_receiver_that_always_fails_are_bounded() {
    let site = Site::new();
    let (dead, mail) = (Receiver::new("dead", Takes::After(usize::MAX)), Receiver::new("mail", Takes::All));
    let first = site.show("first");
    site.watch(&[&dead, &mail], 3 * 3600).await;
    let times = dead.times(&first);
    assert!((10..=14).contains(&times.len()), "{times:?}");
    assert!(times.iter().all(|at| *at <= 3600), "none after the vote: {times:?}");
    let gaps: Vec<u64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(gaps.is_sorted() && gaps.iter().all(|gap| *gap <= 600), "{gaps:?}");
    assert_eq!(mail.times(&first), [0]);
}

/// While no leader answers, the watcher looks on, and announces what it then finds.
#[tokio::test(start_paused = true)]
async fn a_watcher_outlasts_a_control_that_does_not_answer() {
    let site = Site::new();
    let mail = Receiver::new("mail", Takes::All);
    let silence =
        Does::Until(Duration::from_secs(120), Box::new((Does::IsDead, Does::Leads(Duration::ZERO))));
    let first = site.show("first");
    let receivers = [&mail];
    let watching = site.watch(&receivers, 300);
    let dying = async {
        tokio::time::sleep(Duration::from_secs(12)).await;
        site.replicas.set(0, silence);
        site.show("second")
    };
    let ((), second) = tokio::join!(watching, dying);
    assert_eq!(mail.times(&first), [0], "positive control: before the silence");
    let times = mail.times(&second);
    assert!(times.len() == 1 && (120..140).contains(&times[0]), "{times:?}");
}
