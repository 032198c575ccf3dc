//! Format tests: the bytes of every file of the log, and the refusal of every other version.

use super::format::{Format, Stamp};
use super::record::Position;
use super::*;

fn position() -> Position {
    Position { record: RecordNumber(0x0102), chain: [0xc5; 32] }
}

/// Checks the beginning of a file against hexadecimal text, ignoring white space; zeros follow.
fn check(bytes: &[u8], expected: &str) {
    let shown: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let expected: String = expected.split_whitespace().collect();
    assert_eq!(shown, format!("{expected:0<width$}", width = shown.len()));
}

/// Group, replica and voters of [`owner`] 1.
const OWNER: &str = "
    0707070707070707070707070707070707070707070707070707070707070707
    0100000000000000
    001a4cc3a7c5c739";

#[test]
fn the_format_of_a_segment_is_stable() {
    let header = segment::Header { number: SegmentNumber(3), owner: owner(1).stamp(), position: position() };
    check(
        &header.encode(),
        &format!(
            "514c4f47534547 33 0300000000000000 {OWNER} 0201000000000000
            c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5 fd3868ee"
        ),
    );
    assert_eq!(segment::Header::decode(&header.encode()), Ok(header));
    let mut buffer = Vec::new();
    let batch = Batch {
        snapshot: Some(Snapshot {
            index: LogIndex(4),
            term: Term(5),
            voters: Vec::new(),
            data: Bytes::new(),
        }),
        hard_state: Some(HardState { term: Term(6), vote: Some(ReplicaId(7)), commit: LogIndex(8) }),
        entries: vec![LogEntry { index: LogIndex(9), term: Term(10), data: Bytes::from_static(b"data") }],
        sync: true,
    };
    record::write(
        &mut buffer,
        &mut position(),
        RecordNumber(0x0100),
        &record::encode(&batch, Some(Incarnation(11))),
    );
    check(
        &buffer,
        "514c5232 49000000 0301000000000000 0001000000000000
        991e72b64d3a30559ac9b5dd704a3a1abcaadc0a86cff4357f9d00829b6a1fae
        30f44f10 6c18e5ed
        07 0600000000000000 0700000000000000 0800000000000000
        0400000000000000 0500000000000000 0b00000000000000
        0900000000000000 0a00000000000000 04000000 64617461",
    );
}

#[test]
fn the_format_of_the_mark_is_stable() {
    let directory = TempDir::new().expect("temporary directory");
    mark::Mark::create(&real(directory.path()), &owner(1), &position()).expect("space");
    let bytes = fs::read(directory.path().join("durable.mark")).expect("read");
    assert_eq!(bytes.len(), 4096 + 128);
    for at in [0, 4096] {
        check(
            &bytes[at..at + 128],
            &format!(
                "514c4f474d524b 32 {OWNER} 0201000000000000
                c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5 30473ffa"
            ),
        );
    }
}

#[test]
fn the_format_of_a_snapshot_is_stable() {
    let directory = TempDir::new().expect("temporary directory");
    let voters = [1, 2].map(ReplicaId).to_vec();
    let (index, term) = (LogIndex(9), Term(4));
    let taken = Snapshot { index, term, voters, data: Bytes::from_static(b"state") };
    snapshots::save(&real(directory.path()), &owner(1), &taken).expect("space");
    let bytes = fs::read(directory.path().join("snapshot-0000000000000009.snap")).expect("read");
    check(
        &bytes,
        &format!(
            "514c4f47534e50 32 {OWNER} 0900000000000000 0400000000000000
            02000000 0100000000000000 0200000000000000 0500000000000000 7374617465
            7db55f933550dec4419e91df2b65200a95f9fdcd7496b7beb3277fd138b66f87"
        ),
    );
}

/// Returns a file as builds before this format wrote it: another version, another layout.
fn earlier(kind: &[u8; 8], fields: &[&[u8]]) -> Vec<u8> {
    let mut bytes = kind.to_vec();
    fields.iter().for_each(|field| bytes.extend_from_slice(field));
    bytes
}

#[test]
fn files_of_another_version_are_rejected_with_their_code() {
    let group = *blake3::hash(b"voters").as_bytes();
    let eight = 1u64.to_le_bytes();
    let mut segment = earlier(b"QLOGSEG2", &[&eight, &eight, &group, &eight, &group]);
    segment.resize(128, 0);
    let checksum = crc32c::crc32c(&segment);
    segment[96..100].copy_from_slice(&checksum.to_le_bytes());
    let mut mark = earlier(b"QLOGMRK1", &[&eight, &group]);
    mark.extend_from_slice(&crc32c::crc32c(&mark).to_le_bytes());
    mark.resize(4096 + 64, 0);
    let mut snapshot = earlier(b"QLOGSNP1", &[&eight, &eight, &[0; 4], &[0; 8]]);
    snapshot.extend_from_slice(&group);
    let snapshot_name = "snapshot-0000000000000009.snap";
    for (name, old, format) in [
        ("segment-0000000000000000.log", segment, &segment::FORMAT),
        ("durable.mark", mark, &mark::FORMAT),
        (snapshot_name, snapshot, &snapshots::FORMAT),
    ] {
        let Format { version, .. } = *format;
        check_version(name, &old, old[7], version);
        let mut newer = old.clone();
        newer[7] = version + 1;
        check_version(name, &newer, version + 1, version);
    }
}

/// Puts `file` into a healthy log and checks the refusal.
fn check_version(name: &str, file: &[u8], found: u8, read: u8) {
    let directory = TempDir::new().expect("temporary directory");
    small_log(directory.path());
    fs::write(directory.path().join(name), file).expect("write");
    let error = refusal(open(directory.path()));
    assert_eq!(error.code().as_str(), "log-version-unsupported", "{error}");
    let (found, read) = (char::from(found), char::from(read));
    let expected = format!("{name}` is of version `{found}`; this build reads only version `{read}`");
    assert!(error.to_string().ends_with(&expected), "{error}");
}

#[test]
fn a_damaged_version_byte_is_distinguished_from_another_version() {
    let header = segment::Header { number: SegmentNumber(3), owner: owner(1).stamp(), position: position() };
    let mut bytes = header.encode();
    bytes[7] ^= 1;
    assert_eq!(segment::Header::decode(&bytes), Err(format::Unreadable::Damaged));
    assert_eq!(Stamp::decode(&bytes, 16), Some(header.owner));
    assert_eq!(Stamp::decode(&bytes, 100), None, "beyond the end");
}
