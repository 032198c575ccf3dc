//! Tests of the GGUF reader: valid files are cut at their tensors, false claims are refused, and no input
//! panics.

use super::*;
use crate::testing::{Gguf, gguf_text};
use proptest::prelude::*;

fn read(bytes: &[u8]) -> Result<Vec<Extent>, Flaw> {
    extents(bytes, bytes.len() as u64)
}

/// Returns the reason for which a file is refused: `damaged: ...` or `unknown: ...`.
fn refusal(bytes: &[u8]) -> String {
    match read(bytes) {
        Err(Flaw::Damaged(reason)) => format!("damaged: {reason}"),
        Err(Flaw::Unknown(reason)) => format!("unknown: {reason}"),
        other => panic!("expected a refusal, got {other:?}"),
    }
}

fn sample() -> Gguf {
    let mut gguf = Gguf::of(&[("token_embd.weight", 100), ("blk.0.attn_q.weight", 64), ("output.weight", 7)]);
    gguf.keys.push(("general.name".into(), STRING, gguf_text("a name")));
    gguf.keys.push(("x.flag".into(), BOOL, vec![1]));
    gguf.keys.push(("x.epsilon".into(), 6, 1e-5_f32.to_le_bytes().into()));
    gguf.keys.push(("x.large".into(), 10, 7_u64.to_le_bytes().into()));
    let texts = [gguf_text("<s>"), gguf_text(""), gguf_text("word")];
    gguf.keys.push(("tokenizer.ggml.tokens".into(), ARRAY, array(STRING, 3, &texts.concat())));
    gguf.keys.push(("tokenizer.ggml.scores".into(), ARRAY, array(6, 3, &[0; 12])));
    let nested = [array(BOOL, 2, &[0, 1]), array(2, 1, &[9, 9])].concat();
    gguf.keys.push(("x.nested".into(), ARRAY, array(ARRAY, 2, &nested)));
    gguf
}

fn array(kind: u32, count: u64, values: &[u8]) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &count.to_le_bytes(), values].concat()
}

#[test]
fn tensors_are_stretches_that_take_their_padding_along() {
    for version in [2, 3] {
        let gguf = Gguf { version, ..sample() };
        let (bytes, data) = (gguf.bytes(), gguf.header().len() as u64);
        let found: Vec<_> = read(&bytes).expect("sound").into_iter().map(|s| (s.range, s.rank)).collect();
        let expected = [
            (0..data, Rank::FIRST),
            (data..data + 128, Rank::of_tensor("token_embd")),
            (data + 128..data + 192, Rank::of_tensor("blk.0.x")),
            (data + 192..data + 199, Rank::LAST),
        ];
        assert_eq!(found, expected);
    }
    let (mut padded, data) = (sample().bytes(), sample().header().len());
    padded.resize(data + 192 + 32, 0);
    assert_eq!(
        read(&padded).expect("padded at its end").last().map(|s| s.range.end),
        Some(padded.len() as u64)
    );
    let empty = Gguf::of(&[]);
    assert_eq!(read(&empty.bytes()).expect("no tensors").len(), 1);
}

#[test]
fn a_file_is_refused_wherever_it_is_torn() {
    let whole = sample().bytes();
    for length in 0..whole.len() {
        let text = refusal(&whole[..length]);
        assert!(text.starts_with("damaged"), "{length}: {text}");
    }
    let longer = [&whole[..], &[0; 32]].concat();
    assert!(refusal(&longer).contains("32 bytes at its end belong to no tensor"));
}

#[test]
fn unknown_formats_are_refused_by_name() {
    let version = |version: u32| refusal(&Gguf { version, ..sample() }.bytes());
    assert_eq!(version(1), "unknown: GGUF version 1; versions 2 and 3 are read");
    assert_eq!(version(4), "unknown: GGUF version 4; versions 2 and 3 are read");
    assert!(version(3_u32.swap_bytes()).contains("big-endian"), "{}", version(3_u32.swap_bytes()));
    for kind in [4, 5, 31, 33, 36, 38, 43, u32::MAX] {
        let mut gguf = sample();
        gguf.tensors[1].kind = kind;
        let text = refusal(&gguf.bytes());
        assert_eq!(text, format!("unknown: tensor `blk.0.attn_q.weight` is of unknown type {kind}"));
    }
    let mut gguf = sample();
    gguf.keys[0].1 = 13;
    assert!(refusal(&gguf.bytes()).contains("value of unknown type 13"));
    let mut gguf = sample();
    gguf.keys[0] = ("x".into(), ARRAY, array(99, 1, b"x"));
    assert!(refusal(&gguf.bytes()).contains("value of unknown type 99"));
}

#[test]
fn every_contradiction_in_a_header_is_refused() {
    type Edit = fn(&mut Gguf);
    let cases: &[(&str, Edit)] = &[
        ("begins at byte 96 of the data, expected 128", |g| g.tensors[1].offset = 96),
        ("begins at byte 160 of the data, expected 128", |g| g.tensors[1].offset = 160),
        ("begins at byte 0 of the data, expected 64", |g| g.tensors[1].offset = 0),
        ("begins at byte 129 of the data, unaligned", |g| g.tensors[1].offset = 129),
        ("reaches over the end", |g| g.tensors[2].shape = vec![8]),
        ("reaches over the end", |g| g.tensors[2].shape = vec![1 << 62]),
        ("begins at byte 18446744073709551584", |g| g.tensors[2].offset = u64::MAX - 31),
        ("is larger than all memory", |g| g.tensors[2].shape = vec![1 << 33, 1 << 31]),
        ("is larger than all memory", |g| {
            (g.tensors[2].shape, g.tensors[2].kind) = (vec![1 << 61], 27);
        }),
        ("has 5 dimensions", |g| g.tensors[0].shape = vec![1; 5]),
        ("rows of 100, not of whole blocks of 32", |g| g.tensors[0].kind = 8),
        ("tensor `output.weight` appears twice", |g| g.tensors[0].name = "output.weight".into()),
        ("the name of tensor 0 has 257 bytes", |g| g.tensors[0].name = "x".repeat(257)),
        ("the name of tensor 0 is no text", |g| g.tensors[0].name = "a\nb".into()),
        ("key `general.name` appears twice", |g| g.keys[0].0 = "general.name".into()),
        ("key 0 `` is no name", |g| g.keys[0].0 = String::new()),
        ("the name of key 0 has 65536 bytes", |g| g.keys[0].0 = "x".repeat(65_536)),
        ("has 2 for a truth value", |g| g.keys[2].2 = vec![2]),
        ("in the middle of a text of `general.name`", |g| g.keys[1].2 = u64::MAX.to_le_bytes().into()),
        ("in the middle of 1152921504606846976 values", |g| {
            g.keys[1] = ("x".into(), ARRAY, array(10, 1 << 60, b""))
        }),
        ("in the middle of 18446744073709551615 values", |g| {
            g.keys[1] = ("x".into(), ARRAY, array(10, u64::MAX, b""));
        }),
        ("it is truncated or inconsistent", |g| g.keys[1] = ("x".into(), ARRAY, array(ARRAY, u64::MAX, b""))),
        ("nests arrays deeper than 4", |g| {
            let deep = (0..5).fold(array(0, 0, b""), |inner, _| array(ARRAY, 1, &inner));
            g.keys[1] = ("x".into(), ARRAY, deep);
        }),
        ("not a power of two from 8", |g| alignment(g, 48)),
        ("not a power of two from 8", |g| alignment(g, 4)),
        ("not a power of two from 8", |g| alignment(g, 0)),
        ("not a power of two from 8", |g| alignment(g, 1 << 31)),
        ("has a value of type 10, expected 4", |g| {
            g.keys.push(("general.alignment".into(), 10, 32_u64.to_le_bytes().into()));
        }),
    ];
    for (expected, edit) in cases {
        let mut gguf = sample();
        edit(&mut gguf);
        // A refused alignment cannot be used for padding.
        let text = refusal(&[gguf.header(), vec![0; 199]].concat());
        assert!(text.starts_with("damaged") && text.contains(expected), "`{text}` should say `{expected}`");
    }
    assert!(refusal(b"GGUX____________________").contains("does not begin with a GGUF header"));
    let counts = [b"GGUF".as_slice(), &3_u32.to_le_bytes(), &[0xff; 16]].concat();
    assert!(refusal(&counts).contains("names 18446744073709551615 tensors"));
}

fn alignment(gguf: &mut Gguf, bytes: u32) {
    gguf.keys.push(("general.alignment".into(), UINT32, bytes.to_le_bytes().into()));
}

#[test]
fn the_files_own_alignment_counts() {
    let mut gguf = Gguf { alignment: 8, ..Gguf::of(&[]) };
    alignment(&mut gguf, 8);
    gguf.push("a", 0, vec![3], 12);
    gguf.push("b", 8, vec![32, 2], 68);
    let (bytes, data) = (gguf.bytes(), gguf.header().len() as u64);
    let ranges: Vec<_> = read(&bytes).expect("sound").into_iter().map(|extent| extent.range).collect();
    assert_eq!(ranges, [0..data, data..data + 16, data + 16..data + 84]);
}

/// Types of one element per block, and three of larger blocks: number, block, bytes.
const KINDS: [(u32, u64, u64); 7] =
    [(0, 1, 4), (1, 1, 2), (30, 1, 2), (24, 1, 1), (2, 32, 18), (14, 256, 210), (39, 32, 17)];

prop_compose! {
    fn a_tensor()(
        kind in 0..KINDS.len(),
        blocks in 0_u64..4,
        more in proptest::collection::vec(0_u64..4, 0..3),
    )
        -> (u32, Vec<u64>, u64)
    {
        let (kind, block, bytes) = KINDS[kind];
        let rows: u64 = more.iter().product();
        let shape = [vec![blocks * block], more].concat();
        (kind, shape, blocks * bytes * rows)
    }
}

prop_compose! {
    fn a_file()(
        version in 2_u32..=3,
        power in 3_u32..8,
        tensors in proptest::collection::vec(a_tensor(), 0..12),
    )
        -> Gguf
    {
        let mut gguf = Gguf { version, alignment: 1 << power, ..Gguf::of(&[]) };
        alignment(&mut gguf, 1 << power);
        for (number, (kind, shape, bytes)) in tensors.into_iter().enumerate() {
            gguf.push(&format!("blk.{number}.weight"), kind, shape, bytes);
        }
        gguf
    }
}

proptest! {
    #[test]
    fn sound_files_are_covered_by_their_tensors(gguf in a_file()) {
        let (bytes, data) = (gguf.bytes(), gguf.header().len() as u64);
        let found = read(&bytes).expect("sound");
        let mut end = 0;
        for extent in &found {
            prop_assert_eq!(extent.range.start, end);
            end = extent.range.end;
        }
        prop_assert_eq!(end, bytes.len() as u64);
        for (number, tensor) in gguf.tensors.iter().enumerate() {
            let rank = Rank::of_tensor(&tensor.name);
            let (from, to) = (data + tensor.offset, data + tensor.offset + tensor.bytes);
            let covers = |s: &Extent| s.rank == rank && s.range.start == from && s.range.end >= to;
            prop_assert!(found[1..].iter().any(covers), "tensor {} is not covered", number);
        }
    }

    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = read(&bytes);
        let _ = read(&[b"GGUF\x03\0\0\0", &bytes[..]].concat());
    }

    #[test]
    fn altered_files_are_refused_or_still_covered(
        gguf in a_file(),
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = gguf.bytes();
        let header = gguf.header().len();
        for (at, value) in edits {
            bytes[at.index(header)] = value;
        }
        if let Ok(found) = read(&bytes) {
            let mut end = 0;
            for extent in found {
                prop_assert!(extent.range.start == end && extent.range.end >= end);
                end = extent.range.end;
            }
            prop_assert_eq!(end, bytes.len() as u64);
        }
    }
}
