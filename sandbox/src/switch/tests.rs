//! Tests of the packet switch: tables of packets, and random ones.

use super::*;
use proptest::prelude::*;

fn gang(submission: &str, attempt: u32) -> GangId {
    GangId { job: JobId(protocol::Digest::of(submission.as_bytes())), attempt }
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// Returns a packet of the version of its addresses, with some payload.
fn packet(source: &str, destination: &str) -> Vec<u8> {
    raw_packet(ip(source), ip(destination), b"payload")
}

fn raw_packet(source: IpAddr, destination: IpAddr, payload: &[u8]) -> Vec<u8> {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut packet = vec![0; V4_HEADER_BYTES];
            packet[0] = 0x45;
            packet[2..4].copy_from_slice(&((V4_HEADER_BYTES + payload.len()) as u16).to_be_bytes());
            packet[12..16].copy_from_slice(&source.octets());
            packet[16..20].copy_from_slice(&destination.octets());
            [&packet, payload].concat()
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let mut packet = vec![0; V6_HEADER_BYTES];
            packet[0] = 0x60;
            packet[4..6].copy_from_slice(&(payload.len() as u16).to_be_bytes());
            packet[8..24].copy_from_slice(&source.octets());
            packet[24..40].copy_from_slice(&destination.octets());
            [&packet, payload].concat()
        }
        _ => panic!("addresses of two versions"),
    }
}

const A: SwitchPort = SwitchPort(1);
const B: SwitchPort = SwitchPort(2);
const OTHER_JOB: SwitchPort = SwitchPort(3);
const EARLIER: SwitchPort = SwitchPort(4);
const LINK: SwitchPort = SwitchPort(5);
const LINK_TOO: SwitchPort = SwitchPort(6);

/// Two devices and two links of one gang, beside another job and an earlier attempt that use the same
/// addresses.
fn switch() -> PacketSwitch {
    let mut switch = PacketSwitch::default();
    let (train, earlier, other) = (gang("train", 2), gang("train", 1), gang("other", 2));
    for (port, kind, gang, addresses) in [
        (A, PortKind::Device, train, ["10.77.0.1", "fd00::1"].as_slice()),
        (B, PortKind::Device, train, &["10.77.0.2", "fd00::2"]),
        (LINK, PortKind::Link, train, &["10.77.0.3", "10.77.0.4"]),
        (LINK_TOO, PortKind::Link, train, &["10.77.0.5"]),
        (OTHER_JOB, PortKind::Device, other, &["10.77.0.1", "10.77.0.9"]),
        (EARLIER, PortKind::Device, earlier, &["10.77.0.2", "10.77.0.8"]),
    ] {
        let addresses: Vec<IpAddr> = addresses.iter().map(|text| ip(text)).collect();
        switch.attach(port, kind, gang, &addresses).expect("attach");
    }
    switch
}

#[test]
fn ranks_of_one_attempt_reach_each_other_and_nothing_else() {
    use PacketDrop::{ForgedSource, NoSuchRank, UnknownPort};
    for (name, from, source, destination, expected) in [
        ("a neighbour", A, "10.77.0.1", "10.77.0.2", Ok(B)),
        ("a neighbour by IPv6", B, "fd00::2", "fd00::1", Ok(A)),
        ("a rank of another node", A, "10.77.0.1", "10.77.0.4", Ok(LINK)),
        ("from another node", LINK, "10.77.0.4", "10.77.0.2", Ok(B)),
        ("from node to node", LINK, "10.77.0.4", "10.77.0.5", Err(NoSuchRank)),
        ("a rank of another job", A, "10.77.0.1", "10.77.0.9", Err(NoSuchRank)),
        ("a rank of an earlier attempt", A, "10.77.0.1", "10.77.0.8", Err(NoSuchRank)),
        ("from an earlier attempt", EARLIER, "10.77.0.2", "10.77.0.1", Err(NoSuchRank)),
        ("oneself", A, "10.77.0.1", "10.77.0.1", Err(NoSuchRank)),
        ("the host", A, "10.77.0.1", "127.0.0.1", Err(NoSuchRank)),
        ("the metadata service", A, "10.77.0.1", "169.254.169.254", Err(NoSuchRank)),
        ("the internet", A, "10.77.0.1", "1.1.1.1", Err(NoSuchRank)),
        ("everyone", A, "10.77.0.1", "255.255.255.255", Err(NoSuchRank)),
        ("the network's broadcast", A, "10.77.0.1", "10.77.0.255", Err(NoSuchRank)),
        ("a multicast group", A, "fd00::1", "ff02::1", Err(NoSuchRank)),
        ("in a neighbour's name", A, "10.77.0.2", "10.77.0.2", Err(ForgedSource)),
        ("in the host's name", A, "127.0.0.1", "10.77.0.2", Err(ForgedSource)),
        ("in the name of a rank elsewhere", LINK, "10.77.0.1", "10.77.0.2", Err(ForgedSource)),
        ("in no name", A, "0.0.0.0", "10.77.0.2", Err(ForgedSource)),
        ("by a link-local address", A, "fe80::1", "fd00::2", Err(ForgedSource)),
        ("a port that is not there", SwitchPort(99), "10.77.0.1", "10.77.0.2", Err(UnknownPort)),
    ] {
        assert_eq!(switch().forward(from, &packet(source, destination)), expected, "{name}");
    }
}

#[test]
fn what_is_no_whole_packet_is_dropped() {
    let good = packet("10.77.0.1", "10.77.0.2");
    let six = packet("fd00::1", "fd00::2");
    let with = |bytes: &[u8], at: usize, value: u8| {
        let mut changed = bytes.to_vec();
        changed[at] = value;
        changed
    };
    let mut options = good.clone();
    options[0] = 0x46;
    for (name, bytes, expected) in [
        ("nothing", vec![], PacketDrop::Malformed),
        ("version 5", with(&good, 0, 0x55), PacketDrop::Malformed),
        ("version 0", with(&good, 0, 0x05), PacketDrop::Malformed),
        ("a header of 16 bytes", with(&good, 0, 0x44), PacketDrop::Malformed),
        ("a header beyond its packet", with(&good, 0, 0x4f), PacketDrop::Malformed),
        ("options", options, PacketDrop::Options),
        ("a false length", with(&good, 3, 26), PacketDrop::Malformed),
        ("one byte more", [&good[..], &[0]].concat(), PacketDrop::Malformed),
        ("a false IPv6 length", with(&six, 5, 6), PacketDrop::Malformed),
        ("a jumbogram", with(&six[..V6_HEADER_BYTES], 5, 0), PacketDrop::Malformed),
        ("an IPv6 header as version 4", with(&six, 0, 0x45), PacketDrop::Malformed),
    ] {
        assert_eq!(switch().forward(A, &bytes), Err(expected), "{name}");
    }
    for whole in [&good, &six] {
        assert_eq!(switch().forward(A, whole), Ok(B));
        for length in 0..whole.len() {
            assert_eq!(switch().forward(A, &whole[..length]), Err(PacketDrop::Malformed), "{length} bytes");
        }
    }
}

#[test]
fn every_packet_is_counted_once() {
    let mut switch = switch();
    let good = packet("10.77.0.1", "10.77.0.2");
    for bytes in [&good, &good, &packet("10.77.0.1", "8.8.8.8"), &packet("10.77.0.7", "10.77.0.2"), &vec![]] {
        let _ = switch.forward(A, bytes);
    }
    let _ = switch.forward(SwitchPort(99), &good);
    let counters = switch.counters(A).expect("attached").clone();
    assert_eq!((counters.packets, counters.bytes), (2, 2 * good.len() as u64));
    let dropped: Vec<(&str, u64)> =
        counters.dropped.iter().map(|(why, count)| (why.label(), *count)).collect();
    assert_eq!(dropped, [("malformed", 1), ("forged-source", 1), ("no-such-rank", 1)]);
    assert_eq!(switch.dropped_of_unknown_ports(), 1);
    assert_eq!(switch.counters(B), Some(&PortCounters::default()), "a receiver has sent nothing");
    assert_eq!(switch.detach(A), Some(counters));
    assert_eq!(switch.counters(A), None);
    assert_eq!(switch.detach(A), None);
}

#[test]
fn a_gang_that_ends_is_reached_no_more_and_its_addresses_are_free() {
    let mut switch = switch();
    let (train, b) = (gang("train", 2), ip("10.77.0.2"));
    let taken = switch.attach(SwitchPort(20), PortKind::Device, train, &[b]);
    assert_eq!(taken, Err(AttachRefusal::AddressTaken(b)));
    assert_eq!(switch.attach(B, PortKind::Device, train, &[b]), Err(AttachRefusal::PortTaken));
    switch.detach(B).expect("attached");
    let to_b = packet("10.77.0.1", "10.77.0.2");
    assert_eq!(switch.forward(A, &to_b), Err(PacketDrop::NoSuchRank));
    switch.attach(SwitchPort(20), PortKind::Device, train, &[b]).expect("the address is free");
    assert_eq!(switch.forward(A, &to_b), Ok(SwitchPort(20)));
}

#[test]
fn a_port_has_some_addresses_and_not_too_many() {
    let mut switch = PacketSwitch::default();
    let many: Vec<IpAddr> = (0..=PORT_ADDRESSES_MAX as u32).map(|n| Ipv4Addr::from(n + 1).into()).collect();
    for addresses in [&[][..], &many] {
        let refused = switch.attach(A, PortKind::Link, gang("train", 1), addresses);
        assert_eq!(refused, Err(AttachRefusal::AddressCount));
    }
    switch.attach(A, PortKind::Link, gang("train", 1), &many[1..]).expect("the most that a port may have");
}

fn rank() -> impl Strategy<Value = (u8, u32, u8)> {
    (0..2_u8, 0..2_u32, 1..6_u8)
}

proptest! {
    #[test]
    fn any_bytes_pass_only_between_members_of_one_gang(
        ports in prop::collection::vec((0..8_u32, rank(), any::<bool>()), 0..12),
        detached in prop::collection::vec(0..8_u32, 0..4),
        packets in prop::collection::vec((0..9_u32, 1..7_u8, 1..7_u8, any::<bool>()), 0..40),
    ) {
        let address = |last: u8| IpAddr::from([10, 77, 0, last]);
        let job = |number: u8| if number == 0 { "a" } else { "b" };
        let mut switch = PacketSwitch::default();
        let mut members = BTreeMap::new();
        for (port, (name, attempt, last), link) in ports {
            let kind = if link { PortKind::Link } else { PortKind::Device };
            let gang = gang(job(name), attempt);
            if switch.attach(SwitchPort(port), kind, gang, &[address(last)]).is_ok() {
                members.insert(port, (gang, last, kind));
            }
            prop_assert!(switch.is_consistent());
        }
        for port in detached {
            prop_assert_eq!(switch.detach(SwitchPort(port)).is_some(), members.remove(&port).is_some());
        }
        for (from, source, destination, broken) in packets {
            let mut bytes = raw_packet(address(source), address(destination), b"x");
            if broken {
                bytes.push(0);
            }
            let expected = members.get(&from).filter(|sender| sender.1 == source && !broken);
            let expected = expected.and_then(|sender| {
                members.iter().find(|(port, member)| {
                    **port != from
                        && member.0 == sender.0
                        && member.1 == destination
                        && !(member.2 == PortKind::Link && sender.2 == PortKind::Link)
                })
            });
            prop_assert_eq!(
                switch.forward(SwitchPort(from), &bytes).ok(),
                expected.map(|(port, _)| SwitchPort(*port))
            );
        }
    }

    #[test]
    fn hostile_bytes_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..80), six: bool) {
        let mut bytes = bytes;
        if let Some(first) = bytes.first_mut() {
            *first = (*first & 0x0f) | if six { 0x60 } else { 0x40 };
        }
        let mut switch = switch();
        if let Ok(to) = switch.forward(A, &bytes) {
            prop_assert!([B, LINK, LINK_TOO].contains(&to));
        }
    }
}
