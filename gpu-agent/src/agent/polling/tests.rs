//! Tests of the poll of one replica, in paused time.
#![allow(clippy::unwrap_used)]

use super::*;
use std::cell::RefCell;
use std::collections::VecDeque;

/// Answer of a replica: the position behind its records, and these. None is a request that failed.
type Answer = Option<(u64, Vec<&'static str>)>;

/// Script of a replica: its answers, and the positions and times at which it was asked.
struct Script {
    answers: RefCell<VecDeque<Answer>>,
    asked: RefCell<Vec<(u64, u64)>>,
    repeats: watch::Sender<u64>,
    began: Instant,
}

impl Script {
    fn new(answers: impl IntoIterator<Item = Answer>) -> Self {
        Self {
            answers: RefCell::new(answers.into_iter().collect()),
            asked: RefCell::default(),
            repeats: watch::Sender::new(0),
            began: Instant::now(),
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap()
    }

    /// Polls the replica for a time; a script that is at its end fails each request.
    async fn poll(&self, ms: u64, received: &mpsc::Sender<Vec<&'static str>>) {
        let ask = |after: u64| {
            self.asked.borrow_mut().push((after, self.now_ms()));
            std::future::ready(self.answers.borrow_mut().pop_front().flatten())
        };
        let polled = poll_replica(ask, self.repeats.subscribe(), |records| records, received);
        let _ = tokio::time::timeout(Duration::from_millis(ms), polled).await;
    }

    fn asked(&self) -> Vec<(u64, u64)> {
        std::mem::take(&mut *self.asked.borrow_mut())
    }
}

#[tokio::test(start_paused = true)]
async fn each_request_goes_on_from_the_answer_before() {
    let (received, mut news) = mpsc::channel(ANSWERS_MAX);
    let script = Script::new([Some((3, vec!["a", "b"])), Some((3, vec![])), Some((4, vec!["c"]))]);
    script.poll(500, &received).await;
    assert_eq!(script.asked(), [(0, 0), (3, 200), (3, 400)], "no faster than the gap");
    let handed = [news.try_recv().unwrap(), news.try_recv().unwrap()];
    assert_eq!(handed, [vec!["a", "b"], vec!["c"]]);
    assert!(news.try_recv().is_err(), "an answer without records is no news");
}

#[tokio::test(start_paused = true)]
async fn a_failed_request_keeps_the_position_and_waits_longer() {
    let (received, _news) = mpsc::channel(ANSWERS_MAX);
    let script = Script::new([Some((3, vec!["a"])), None, Some((3, vec![]))]);
    script.poll(700, &received).await;
    assert_eq!(script.asked(), [(0, 0), (3, 200), (3, 600)]);
}

/// A request that fails just after the start over is made again from the start.
#[tokio::test(start_paused = true)]
async fn a_poll_that_starts_over_asks_for_everything_until_it_is_answered() {
    let (received, _news) = mpsc::channel(ANSWERS_MAX);
    let script = Script::new([Some((3, vec!["a"])), None, Some((3, vec!["a"]))]);
    let start_over = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        script.repeats.send_replace(1);
    };
    tokio::join!(script.poll(900, &received), start_over);
    assert_eq!(script.asked(), [(0, 0), (0, 200), (0, 600), (3, 800)]);
}

/// The replica holds its first request, for as long as a hostile one can.
#[tokio::test(start_paused = true)]
async fn a_request_that_is_held_is_given_up_to_start_over() {
    let (received, mut news) = mpsc::channel(ANSWERS_MAX);
    let script = Script::new([]);
    let ask = |after: u64| {
        let earlier = script.asked.borrow().len();
        script.asked.borrow_mut().push((after, script.now_ms()));
        async move {
            match earlier {
                0 => Some((3, vec!["a"])),
                1 => std::future::pending().await,
                _ => Some((4, vec!["a", "b"])),
            }
        }
    };
    let polled = poll_replica(ask, script.repeats.subscribe(), |records| records, &received);
    let start_over = async {
        tokio::time::sleep(Duration::from_millis(900)).await;
        script.repeats.send_replace(1);
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    tokio::select! {
        () = polled => panic!("its receiver is there"),
        () = start_over => {}
    }
    assert_eq!(script.asked(), [(0, 0), (3, 200), (0, 900)]);
    assert_eq!([news.try_recv().unwrap(), news.try_recv().unwrap()], [vec!["a"], vec!["a", "b"]]);
}

#[tokio::test(start_paused = true)]
async fn a_poll_whose_request_is_held_ends_with_its_receiver() {
    let (received, news) = mpsc::channel::<Vec<&str>>(ANSWERS_MAX);
    let (_repeats, watched) = watch::channel(0);
    let hold = |_: u64| std::future::pending::<Option<(u64, Vec<&str>)>>();
    let polled = poll_replica(hold, watched, |records| records, &received);
    let end = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        drop(news);
    };
    let began = Instant::now();
    tokio::join!(polled, end);
    assert_eq!(began.elapsed(), Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn a_poll_ends_with_its_receiver() {
    let (received, news) = mpsc::channel(ANSWERS_MAX);
    drop(news);
    let script = Script::new([Some((1, vec!["a"])), Some((2, vec!["b"]))]);
    script.poll(60_000, &received).await;
    assert_eq!(script.asked(), [(0, 0)], "the news cannot be handed on");
    let script = Script::new([]);
    script.poll(60_000, &received).await;
    assert_eq!(script.asked(), [(0, 0)], "a replica that does not answer is not asked for ever");
}
