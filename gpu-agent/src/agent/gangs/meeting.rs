//! Meetings: two nodes that listen nowhere reach each other through this one, which is no part of their gang.
//!
//! Both dial this node and bring the orders of both as evidence. The node copies bytes between the two
//! streams. They prove their keys to each other inside, so it carries ciphertext, and can only cut it.

use super::link::write_message;
use crate::agent::core::Refusal;
use human_chain::{CircleState, check_meeting};
use protocol::gang::{GangAnswer, GangMeeting};
use protocol::{JobId, NodeId, error_code};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{oneshot, watch};

/// Longest wait of a node for the one that it is to meet.
const WAIT: Duration = Duration::from_secs(12);

/// The pair of nodes that meets, for one attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct MeetingKey {
    job: JobId,
    attempt: u32,
    lower: NodeId,
    higher: NodeId,
}

impl MeetingKey {
    /// Verifies the evidence of a node, and returns the meeting that it asks for.
    pub(super) fn of(circle: &CircleState, from: NodeId, meeting: &GangMeeting) -> Result<Self, Refusal> {
        let peer = check_meeting(circle, &meeting.own, &meeting.peer, from)?;
        let order = &meeting.own.order;
        let (lower, higher) = if from < peer { (from, peer) } else { (peer, from) };
        Ok(Self { job: order.submission.submission.id(), attempt: order.attempt, lower, higher })
    }
}

/// A stream that was brought to a node that waits, and the signal that it is no longer used.
type BroughtStream<S> = (S, oneshot::Sender<()>);

type WaitingNodes<S> = BTreeMap<(MeetingKey, NodeId), oneshot::Sender<BroughtStream<S>>>;

/// Nodes that wait at this one.
#[derive(Debug)]
pub(super) struct Meetings<S>(Mutex<WaitingNodes<S>>);

impl<S> Default for Meetings<S> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

/// Arrival of a node at a meeting.
enum MeetingArrival<S> {
    /// It is the second one; the first carries both streams.
    Second(oneshot::Sender<BroughtStream<S>>),
    /// It is the first one, and waits for the other's stream.
    First(oneshot::Receiver<BroughtStream<S>>),
}

impl<S: AsyncRead + AsyncWrite + Unpin> Meetings<S> {
    /// Lets two nodes meet. The one that arrives first waits for the other; its call then carries both
    /// directions until either side ends, one of them is no longer admitted, or the wait is over.
    ///
    /// # Errors
    /// The other node did not come. The stream is answered with the refusal.
    pub(super) async fn meet(
        &self,
        key: MeetingKey,
        from: NodeId,
        mut stream: S,
        mut circle: watch::Receiver<Arc<CircleState>>,
    ) -> Result<(), Refusal> {
        let brought = match self.arrive(key, from) {
            MeetingArrival::Second(first) => {
                let (done, ended) = oneshot::channel();
                if first.send((stream, done)).is_ok() {
                    // The end of the first one's call is the end of the meeting, and never an answer.
                    let _ = ended.await;
                }
                return Ok(());
            }
            MeetingArrival::First(brought) => brought,
        };
        let Ok(Ok((mut peer, _done))) = tokio::time::timeout(WAIT, brought).await else {
            let refusal = Refusal::new(error_code::GANG_LINK_REFUSED, "the other node did not come");
            // It may have gone too.
            let _ = write_message(&mut stream, &GangAnswer { refusal: Some(refusal.clone()) }).await;
            return Err(refusal);
        };
        let both = async {
            for side in [&mut stream, &mut peer] {
                write_message(side, &GangAnswer { refusal: None }).await?;
            }
            tokio::io::copy_bidirectional(&mut stream, &mut peer).await
        };
        let is_gone = |state: &Arc<CircleState>| {
            [key.lower, key.higher].iter().any(|node| state.node_by_id(*node).is_none())
        };
        tokio::select! {
            ended = both => tracing::debug!(?ended, "a meeting of two nodes of a gang ended"),
            _ = circle.wait_for(is_gone) => tracing::info!("a meeting of a node that was removed ended"),
        }
        Ok(())
    }

    fn arrive(&self, key: MeetingKey, from: NodeId) -> MeetingArrival<S> {
        let other = if from == key.lower { key.higher } else { key.lower };
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Nodes whose wait is over, or whose stream was dropped.
        waiting.retain(|_, first| !first.is_closed());
        if let Some(first) = waiting.remove(&(key, other)) {
            return MeetingArrival::Second(first);
        }
        let (brings, brought) = oneshot::channel();
        waiting.insert((key, from), brings);
        MeetingArrival::First(brought)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::gangs::link::read_message;
    use crate::agent::gangs::testing::{Attempt, circle_of, node_key};
    use protocol::gang::GANG_ANSWER_BYTES_MAX;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    fn key(circle: &CircleState, attempt: &Attempt, from: u8) -> Result<MeetingKey, Refusal> {
        MeetingKey::of(circle, node_key(from), &attempt.meeting(from))
    }

    async fn answered(stream: &mut DuplexStream) -> Option<Refusal> {
        let answer: GangAnswer = read_message(stream, GANG_ANSWER_BYTES_MAX).await.unwrap();
        answer.refusal
    }

    #[tokio::test(start_paused = true)]
    async fn two_nodes_meet_and_a_third_has_no_part() {
        let world = circle_of(&[(1, None), (2, None), (3, Some("10.0.0.3:1"))]);
        let attempt = Attempt::of_two(&world, 1, 2);
        let (sender, circle) = watch::channel(Arc::new(world.state.clone()));
        let (one, two) = (key(&world.state, &attempt, 1).unwrap(), key(&world.state, &attempt, 2).unwrap());
        assert_eq!(one, two, "both come to the same meeting");
        let meetings: Arc<Meetings<DuplexStream>> = Arc::default();
        let come = |from: u8, key: MeetingKey| {
            let (near, far) = duplex(1 << 10);
            let (meetings, circle) = (meetings.clone(), circle.clone());
            (near, tokio::spawn(async move { meetings.meet(key, node_key(from), far, circle).await }))
        };
        // The same node twice waits, and meets neither itself nor a node of another attempt.
        let (mut early, _waits) = come(1, one);
        let (mut first, carries) = come(1, one);
        let (mut foreign, waits) = come(2, MeetingKey { attempt: 2, ..two });
        let (mut second, _) = come(2, two);
        assert_eq!((answered(&mut first).await, answered(&mut second).await), (None, None));
        first.write_all(b"sealed").await.unwrap();
        let mut read = [0; 6];
        second.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"sealed");
        for lonely in [&mut early, &mut foreign] {
            assert_eq!(answered(lonely).await.unwrap().code, error_code::GANG_LINK_REFUSED);
        }
        assert!(waits.await.unwrap().is_err());
        // A node that the circle removes is carried no further.
        let mut world = world;
        world.decide(protocol::governance::Change::RemoveNode { node: "node-2".parse().unwrap() });
        sender.send_replace(Arc::new(world.state.clone()));
        assert_eq!(carries.await.unwrap(), Ok(()));
        assert_eq!(second.read(&mut read).await.unwrap(), 0, "the stream has ended");
    }

    /// Attacks on a node that carries: the first line is the positive control.
    #[test]
    fn a_meeting_needs_the_orders_of_both_nodes() {
        let world = circle_of(&[(1, None), (2, None), (3, Some("10.0.0.3:1")), (4, None)]);
        let attempt = Attempt::of_two(&world, 1, 2);
        let later = Attempt { number: 2, ..attempt.clone() };
        let other = Attempt { submission: 2, ..attempt.clone() };
        let code = |from: u8, meeting: GangMeeting| {
            MeetingKey::of(&world.state, node_key(from), &meeting).map(drop).map_err(|refusal| refusal.code)
        };
        let sound = attempt.meeting(1);
        let mixed = |peer: &Attempt| GangMeeting { own: sound.own.clone(), peer: peer.meeting(1).peer };
        let mut altered = sound.clone();
        altered.peer.order.attempt = 2;
        let itself = GangMeeting { own: sound.own.clone(), peer: sound.own.clone() };
        assert_eq!(code(1, sound.clone()), Ok(()));
        for (what, from, meeting, expected) in [
            ("a node that neither order names", 4, sound.clone(), error_code::ORDER_MISMATCH),
            ("the other node's orders", 2, sound.clone(), error_code::ORDER_MISMATCH),
            ("itself", 1, itself, error_code::ORDER_MISMATCH),
            ("an order of another attempt", 1, mixed(&later), error_code::ORDER_MISMATCH),
            ("an order of another submission", 1, mixed(&other), error_code::ORDER_MISMATCH),
            ("an altered order", 1, altered, error_code::ORDER_MISMATCH),
        ] {
            assert_eq!(code(from, meeting), Err(expected), "{what}");
        }
        let mut forged = sound;
        forged.peer.signature.0[0] ^= 1;
        assert_eq!(code(1, forged), Err(error_code::ORDER_SIGNATURE_INVALID), "an order of no replica");
    }
}
