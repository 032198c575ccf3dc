//! Tests of the carriage between slots: on one node, between two, through a third; and attacks on it, each
//! with a positive control.
#![allow(clippy::unwrap_used)]

use super::testing::{Attempt, circle_of, identity, node_key};
use super::*;
use crate::agent::core::testing::TestCircle;
use crate::agent::gangs::accept::{STREAMS_PER_NODE_MAX, StreamPurpose};
use axum::Router;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use overlay::{CancellationToken, serve_with_streams};
use protocol::governance::Change;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// Longest wait of a test on real connections: it only keeps a failing test from hanging.
const PATIENCE: Duration = Duration::from_secs(60);

/// A node of a circle, with the sender of its state.
struct TestNode {
    gangs: Arc<Gangs>,
    circle: watch::Sender<Arc<CircleState>>,
}

impl TestNode {
    fn new(world: &TestCircle, node: u8) -> Self {
        let (circle, receiver) = watch::channel(Arc::new(world.state.clone()));
        Self { gangs: Gangs::new(identity(node), receiver), circle }
    }

    fn dropped(&self) -> Vec<(&'static str, u64)> {
        self.gangs.counters().dropped.into_iter().collect()
    }

    fn hello(&self, attempt: &Attempt) -> GangHello {
        let (circle, GangId { job, attempt }) = (self.circle.borrow().id(), attempt.gang());
        GangHello { version: GANG_LINK_VERSION, circle, job, attempt, meeting: None }
    }

    /// Returns the link that a hello of a peer gets, or the code of its refusal.
    fn judge(&self, peer: u8, hello: &GangHello) -> Result<Arc<GangLink>, protocol::error_code::ErrorCode> {
        match self.gangs.judge(node_key(peer), hello) {
            Ok(StreamPurpose::Link(link)) => Ok(link),
            Ok(StreamPurpose::Meeting(_)) => panic!("no meeting was asked for"),
            Err(refusal) => Err(refusal.code),
        }
    }
}

/// The ranks' end of a gang device: messages of a socket play packets.
struct Ranks {
    device: PacketDevice,
    _moves: JoinHandle<()>,
}

impl Ranks {
    fn attach(membership: &GangMembership) -> Self {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let (near, far) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap();
        let moves = tokio::spawn(membership.attach(far).unwrap());
        Self { device: PacketDevice::new(near).unwrap(), _moves: moves }
    }

    async fn receives(&self) -> Vec<u8> {
        let mut packet = vec![0; GANG_PACKET_BYTES_MAX];
        let read = tokio::time::timeout(PATIENCE, self.device.read(&mut packet)).await;
        packet.truncate(read.expect("in time").unwrap());
        packet
    }
}

/// Returns an IPv4 packet between two addresses of the gang's network, by their last bytes.
fn packet(source: u8, destination: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = [0; 20];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&((20 + payload.len()) as u16).to_be_bytes());
    packet[12..16].copy_from_slice(&[10, 77, 0, source]);
    packet[16..20].copy_from_slice(&[10, 77, 0, destination]);
    [&packet[..], payload].concat()
}

/// Carries one end of a link over a stream in memory, and returns the other end.
fn carry(node: &TestNode, link: Arc<GangLink>) -> (DuplexStream, JoinHandle<LinkEnd>) {
    let (near, far) = duplex(1 << 20);
    let gangs = node.gangs.clone();
    (far, tokio::spawn(async move { gangs.carry(near, &link).await }))
}

async fn frame(stream: &mut DuplexStream) -> Vec<u8> {
    loop {
        let length = stream.read_u16().await.unwrap();
        let mut packet = vec![0; usize::from(length)];
        stream.read_exact(&mut packet).await.unwrap();
        if length > 0 {
            return packet;
        }
    }
}

async fn send_frame(stream: &mut DuplexStream, packet: &[u8]) {
    stream.write_u16(packet.len() as u16).await.unwrap();
    stream.write_all(packet).await.unwrap();
}

#[tokio::test]
async fn two_slots_of_one_node_reach_each_other_without_a_link() {
    let world = circle_of(&[(1, None)]);
    let attempt = Attempt::of(&world, &[(1, 0, 2), (1, 2, 2)]);
    let node = TestNode::new(&world, 1);
    let [one, other] = [0, 1].map(|slot| node.gangs.join(&attempt.orders_of_slot(&world, slot)).unwrap());
    one.linked().await.unwrap();
    let (first, second) = (Ranks::attach(&one), Ranks::attach(&other));
    assert!(first.device.write(&packet(1, 3, b"hello")));
    assert_eq!(second.receives().await, packet(1, 3, b"hello"));
    assert!(second.device.write(&packet(3, 1, b"answer")));
    assert_eq!(first.receives().await, packet(3, 1, b"answer"));
    // Another attempt on the same node, with the same addresses, receives none of it.
    let later = Attempt { number: 2, ..attempt.clone() };
    let beside = Attempt { submission: 2, ..attempt.clone() };
    for foreign in [later, beside] {
        let membership = node.gangs.join(&foreign.orders_of_slot(&world, 0)).unwrap();
        let ranks = Ranks::attach(&membership);
        assert!(ranks.device.write(&packet(1, 3, b"foreign")));
        assert!(first.device.write(&packet(1, 3, b"own")));
        assert_eq!(second.receives().await, packet(1, 3, b"own"), "the foreign packet was not delivered");
    }
    assert_eq!(node.gangs.counters().packets, 4);
}

#[tokio::test]
async fn packets_pass_a_link_in_both_directions_and_forged_ones_do_not() {
    let world = circle_of(&[(1, Some("127.0.0.1:9")), (2, None)]);
    let attempt = Attempt::of_two(&world, 1, 2);
    let node = TestNode::new(&world, 1);
    let membership = node.gangs.join(&attempt.orders(&world, 1)).unwrap();
    let ranks = Ranks::attach(&membership);
    let link = node.judge(2, &node.hello(&attempt)).unwrap();
    let (mut peer, ended) = carry(&node, link);
    membership.linked().await.unwrap();
    assert!(ranks.device.write(&packet(1, 3, b"out")));
    assert_eq!(frame(&mut peer).await, packet(1, 3, b"out"));
    // The peer sends in this node's name, in that of no rank, to itself, and what is no packet.
    for forged in [packet(1, 1, b""), packet(9, 1, b""), packet(3, 3, b""), packet(3, 9, b""), vec![0; 3]] {
        send_frame(&mut peer, &forged).await;
    }
    send_frame(&mut peer, &packet(3, 1, b"in")).await;
    assert_eq!(ranks.receives().await, packet(3, 1, b"in"), "positive control, and the first that arrives");
    // The ranks here forge too.
    for forged in [packet(3, 1, b""), packet(2, 3, b""), packet(1, 9, b"")] {
        assert!(ranks.device.write(&forged));
    }
    assert!(ranks.device.write(&packet(1, 3, b"after")));
    assert_eq!(frame(&mut peer).await, packet(1, 3, b"after"));
    assert_eq!(node.dropped(), [("forged-source", 4), ("malformed", 1), ("no-such-rank", 3)]);
    // A frame above the limit ends the link.
    peer.write_u16(GANG_PACKET_BYTES_MAX as u16 + 1).await.unwrap();
    assert!(
        matches!(ended.await.unwrap(), LinkEnd::Oversized(length) if length == GANG_PACKET_BYTES_MAX + 1)
    );
    assert!(node.dropped().contains(&("oversized", 1)));
    assert!(ranks.device.write(&packet(1, 3, b"late")));
    ranks_are_quiet(&node, "link-down").await;
}

/// Waits until a drop for this reason is counted.
async fn ranks_are_quiet(node: &TestNode, reason: &'static str) {
    let counted = async {
        while !node.dropped().iter().any(|(label, count)| *label == reason && *count > 0) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, counted).await.unwrap_or_else(|_| panic!("no drop for {reason}"));
}

/// Attacks of an admitted node that wants to be in a gang. The first line is the positive control.
#[tokio::test]
async fn a_link_needs_an_order_of_this_node_that_names_the_peer() {
    let world = circle_of(&[(1, Some("127.0.0.1:9")), (2, None), (3, None)]);
    let attempt = Attempt::of_two(&world, 1, 2);
    let node = TestNode::new(&world, 1);
    let sound = node.hello(&attempt);
    let refused = Err(error_code::GANG_LINK_REFUSED);
    let code = |node: &TestNode, peer: u8, hello: &GangHello| node.judge(peer, hello).map(drop);
    assert_eq!(code(&node, 2, &sound), refused, "no order is held yet");
    let membership = node.gangs.join(&attempt.orders(&world, 1)).unwrap();
    assert_eq!(code(&node, 2, &sound), Ok(()));
    let other_circle = circle_of(&[(1, None), (9, None)]).state.id();
    assert_ne!(other_circle, sound.circle);
    for (what, peer, hello) in [
        ("a node of no slot", 3, sound.clone()),
        ("an unadmitted node", 9, sound.clone()),
        ("this node itself", 1, sound.clone()),
        ("another attempt", 2, GangHello { attempt: 2, ..sound.clone() }),
        ("another submission", 2, node.hello(&Attempt { submission: 2, ..attempt.clone() })),
        ("another circle", 2, GangHello { circle: other_circle, ..sound.clone() }),
        ("another version", 2, GangHello { version: 2, ..sound.clone() }),
    ] {
        assert_eq!(code(&node, peer, &hello), refused, "{what}");
    }
    // The attempt ends; its hello is replayed while the next one runs.
    drop(membership);
    let later = Attempt { number: 2, ..attempt.clone() };
    let _next = node.gangs.join(&later.orders(&world, 1)).unwrap();
    assert_eq!(code(&node, 2, &sound), refused, "an ended attempt");
    assert_eq!(code(&node, 2, &node.hello(&later)), Ok(()));
}

#[tokio::test]
async fn a_second_slot_with_other_members_is_refused() {
    let world = circle_of(&[(1, Some("127.0.0.1:9")), (2, None), (3, None)]);
    let node = TestNode::new(&world, 1);
    let attempt = Attempt::of(&world, &[(1, 0, 1), (1, 1, 1), (2, 2, 2)]);
    let _first = node.gangs.join(&attempt.orders_of_slot(&world, 0)).unwrap();
    let code = |attempt: &Attempt, slot: usize| {
        node.gangs.join(&attempt.orders_of_slot(&world, slot)).map(drop).map_err(|refusal| refusal.code)
    };
    assert_eq!(code(&attempt, 0), Err(error_code::ORDER_MISMATCH), "the same slot twice");
    // A hostile control gives the ranks of node 2 to node 3 in the orders for the second slot.
    let other = Attempt::of(&world, &[(1, 0, 1), (1, 1, 1), (3, 2, 2)]);
    assert_eq!(code(&other, 1), Err(error_code::ORDER_MISMATCH));
    assert_eq!(code(&attempt, 1), Ok(()), "positive control");
}

#[tokio::test]
async fn a_node_that_is_removed_loses_its_links_and_a_newer_stream_replaces_an_older() {
    let mut world = circle_of(&[(1, Some("127.0.0.1:9")), (2, None)]);
    let attempt = Attempt::of_two(&world, 1, 2);
    let node = TestNode::new(&world, 1);
    let membership = node.gangs.join(&attempt.orders(&world, 1)).unwrap();
    let link = node.judge(2, &node.hello(&attempt)).unwrap();
    let (_old, replaced) = carry(&node, link.clone());
    membership.linked().await.unwrap();
    let (mut peer, removed) = carry(&node, link);
    assert!(matches!(replaced.await.unwrap(), LinkEnd::Replaced));
    let ranks = Ranks::attach(&membership);
    send_frame(&mut peer, &packet(3, 1, b"admitted")).await;
    assert_eq!(ranks.receives().await, packet(3, 1, b"admitted"), "positive control");
    world.decide(Change::RemoveNode { node: "node-2".parse().unwrap() });
    node.circle.send_replace(Arc::new(world.state.clone()));
    assert!(matches!(removed.await.unwrap(), LinkEnd::NotAdmitted));
    assert_eq!(node.judge(2, &node.hello(&attempt)).map(drop), Err(error_code::GANG_LINK_REFUSED));
}

/// A node that is never reached is named, with the cause. Time is simulated.
#[tokio::test(start_paused = true)]
async fn a_slot_whose_peer_does_not_come_is_refused_by_name() {
    let world = circle_of(&[(1, Some("127.0.0.1:9")), (2, None)]);
    let node = TestNode::new(&world, 1);
    let membership = node.gangs.join(&Attempt::of_two(&world, 1, 2).orders(&world, 1)).unwrap();
    let refusal = membership.linked().await.unwrap_err();
    assert_eq!(refusal.code, error_code::GANG_LINK_DOWN);
    assert!(refusal.message.contains("`node-2`") && refusal.message.contains("not dialled"), "{refusal}");

    let world = circle_of(&[(1, None), (2, None)]);
    let node = TestNode::new(&world, 1);
    let refusal = node.gangs.join(&Attempt::of_two(&world, 1, 2).orders(&world, 1)).map(drop).unwrap_err();
    assert_eq!(refusal.code, error_code::GANG_NETWORK_UNAVAILABLE, "nodes that cannot meet do not wait");
}

#[test]
fn a_flood_of_streams_of_one_node_leaves_room_for_others() {
    let places = accept::StreamPlaces::default();
    let mut held: Vec<_> = (0..STREAMS_PER_NODE_MAX).map(|_| places.take(node_key(2)).unwrap()).collect();
    assert!(places.take(node_key(2)).is_none());
    assert!(places.take(node_key(3)).is_some(), "positive control");
    held.pop();
    assert!(places.take(node_key(2)).is_some(), "a place that was given back");
}

/// Serves the storage listener of a node, as its agent does.
fn serve(node: &TestNode, number: u8, listener: TcpListener, shutdown: &CancellationToken) {
    let circle = node.circle.subscribe();
    let admitted = move |key: &overlay::PublicKey| circle.borrow().node_by_id(NodeId(*key)).is_some();
    let (policy, limits, until) = (PeerPolicy::new(admitted), Limits::default(), shutdown.clone());
    let streams = stream_handler(node.gangs.clone());
    tokio::spawn(async move {
        let own = identity(number);
        serve_with_streams(listener, &own, policy, limits, Router::new(), streams, until).await
    });
}

/// Joins the slots of two nodes, waits for their link, and sends a packet each way.
async fn exchange(world: &TestCircle, (one, first): (&TestNode, u8), (two, second): (&TestNode, u8)) {
    let attempt = Attempt::of_two(world, first, second);
    let here = one.gangs.join(&attempt.orders(world, first)).unwrap();
    let there = two.gangs.join(&attempt.orders(world, second)).unwrap();
    let linked = async { tokio::try_join!(here.linked(), there.linked()) };
    tokio::time::timeout(PATIENCE, linked).await.expect("in time").unwrap();
    let (here, there) = (Ranks::attach(&here), Ranks::attach(&there));
    let large = vec![7; GANG_PACKET_BYTES_MAX - 20];
    assert!(here.device.write(&packet(1, 3, &large)));
    assert_eq!(there.receives().await, packet(1, 3, &large));
    assert!(there.device.write(&packet(3, 1, b"answer")));
    assert_eq!(here.receives().await, packet(3, 1, b"answer"));
}

#[tokio::test]
async fn two_nodes_are_linked_over_the_overlay() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let world = circle_of(&[(1, Some(&address)), (2, None)]);
    let (one, two) = (TestNode::new(&world, 1), TestNode::new(&world, 2));
    let shutdown = CancellationToken::new();
    serve(&one, 1, listener, &shutdown);
    exchange(&world, (&one, 1), (&two, 2)).await;
    shutdown.cancel();
}

#[tokio::test]
async fn two_nodes_that_listen_nowhere_meet_at_a_third() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let world = circle_of(&[(1, None), (2, None), (3, Some(&address))]);
    let [one, two, third] = [1, 2, 3].map(|node| TestNode::new(&world, node));
    let shutdown = CancellationToken::new();
    serve(&third, 3, listener, &shutdown);
    exchange(&world, (&one, 1), (&two, 2)).await;
    assert_eq!(third.gangs.counters().packets, 0, "the third node sees no packet");
    shutdown.cancel();
}
