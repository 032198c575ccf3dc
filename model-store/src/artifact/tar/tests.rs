//! Tests of the tar reader: every form of a name and a number, and archives that are refused.

use super::*;
use crate::testing::{TarWriter, with_checksum};

fn entries(bytes: &[u8]) -> io::Result<Vec<(TarEntry, Vec<u8>)>> {
    let (mut reader, mut found) = (TarReader::new(bytes), Vec::new());
    while let Some(entry) = reader.next_entry()? {
        let mut content = Vec::new();
        reader.read_to_end(&mut content)?;
        found.push((entry, content));
    }
    Ok(found)
}

/// Returns an archive of one file `x`, whose header is changed before its checksum is made.
fn changed(change: impl Fn(&mut [u8; 512])) -> Vec<u8> {
    let archive = TarWriter::default().file("x", b"hello").finish();
    let mut block: [u8; 512] = archive[..512].try_into().expect("a block");
    change(&mut block);
    [&with_checksum(block)[..], &archive[512..]].concat()
}

fn pax(records: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let digits = if rest + 1 < 10 {
            1
        } else if rest + 2 < 100 {
            2
        } else {
            3
        };
        bytes.extend(format!("{} {key}={value}\n", rest + digits).into_bytes());
    }
    bytes
}

#[test]
fn entries_come_in_their_order_with_their_contents() {
    let long = format!("{}/name", "d".repeat(200));
    let archive = TarWriter::default()
        .directory("bin/")
        .program("bin/run")
        .link("bin/sh", "run")
        .entry(b'1', "bin/copy", "bin/run", 0o755, b"")
        .file(&long, &[7; 1000])
        .file("empty", b"");
    let found = entries(&archive.finish()).expect("an archive");
    let paths: Vec<&str> = found.iter().map(|(entry, _)| entry.path.as_str()).collect();
    assert_eq!(paths, ["bin/", "bin/run", "bin/sh", "bin/copy", &long, "empty"]);
    let kinds: Vec<&TarKind> = found.iter().map(|(entry, _)| &entry.kind).collect();
    assert_eq!(*kinds[0], TarKind::Directory);
    assert_eq!(
        (kinds[1], found[1].0.executable, found[1].1.as_slice()),
        (&TarKind::File, true, &b"#!/bin/sh\n"[..])
    );
    assert_eq!(*kinds[2], TarKind::Symlink("run".into()));
    assert_eq!(*kinds[3], TarKind::HardLink("bin/run".into()));
    assert_eq!((found[4].0.length, found[4].1.len(), found[4].0.executable), (1000, 1000, false));
}

#[test]
fn contents_may_be_skipped_and_offsets_name_them() {
    let bytes = TarWriter::default().file("a", &[1; 700]).file("b", b"second").finish();
    let mut reader = TarReader::new(bytes.as_slice());
    reader.next_entry().expect("a header").expect("an entry");
    let second = reader.next_entry().expect("a header").expect("an entry");
    let at = second.offset as usize;
    assert_eq!(&bytes[at..at + second.length as usize], b"second");
}

#[test]
fn extended_headers_and_binary_numbers_are_read() {
    let records = pax(&[("path", "dir/ä"), ("mtime", "1.5"), ("SCHILY.xattr.user.x", "y")]);
    let archive = TarWriter::default().entry(b'x', "PaxHeaders/x", "", 0, &records).file("short", b"one");
    let found = entries(&archive.finish()).expect("an archive");
    assert_eq!((found[0].0.path.as_str(), found[0].1.as_slice()), ("dir/ä", &b"one"[..]));
    let records = pax(&[("linkpath", "far/away")]);
    let archive = TarWriter::default().entry(b'x', "p", "", 0, &records).link("l", "near");
    let found = entries(&archive.finish()).expect("an archive");
    assert_eq!(found[0].0.kind, TarKind::Symlink("far/away".into()));
    let binary = changed(|block| {
        block[124..136].fill(0);
        (block[124], block[135]) = (0x80, 5);
    });
    assert_eq!(entries(&binary).expect("an archive")[0].1, b"hello");
    let prefixed = changed(|block| block[345..348].copy_from_slice(b"usr"));
    assert_eq!(entries(&prefixed).expect("an archive")[0].0.path, "usr/x");
}

#[test]
fn a_malformed_archive_is_refused_by_its_flaw() {
    let records = |records: &[(&str, &str)]| {
        TarWriter::default().entry(b'x', "p", "", 0, &pax(records)).file("f", b"x").finish()
    };
    let raw = |bytes: &[u8]| TarWriter::default().entry(b'x', "p", "", 0, bytes).file("f", b"x").finish();
    let whole = TarWriter::default().file("x", b"hello").finish();
    let mut wrong_sum = whole.clone();
    wrong_sum[0] ^= 1;
    let mut many = TarWriter::default();
    for _ in 0..6 {
        many = many.entry(b'x', "p", "", 0, &pax(&[("path", "q")]));
    }
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("checksum", wrong_sum),
        ("ends early", whole[..512 + 3].to_vec()),
        ("ends early", whole[..1024].to_vec()),
        ("ends early", Vec::from(&whole[..520])),
        ("followed by another entry", [&[0; 512][..], &whole].concat()),
        ("not known", TarWriter::default().entry(b'Z', "x", "", 0, b"").finish()),
        ("sparse", TarWriter::default().entry(b'S', "x", "", 0, b"").finish()),
        ("sparse", records(&[("GNU.sparse.major", "1")])),
        ("is no file", TarWriter::default().entry(b'2', "l", "t", 0, b"content").finish()),
        ("is no file", TarWriter::default().entry(b'5', "d", "", 0, b"content").finish()),
        ("malformed", changed(|block| block[124..136].fill(b'9'))),
        ("malformed", changed(|block| block[124..128].copy_from_slice(b"+7  "))),
        ("exceeds 64 bits", changed(|block| block[124..136].fill(0xff))),
        (
            "bytes",
            changed(|block| {
                block[124..136].fill(0xff);
                block[124..128].copy_from_slice(&[0x80, 0, 0, 0]);
            }),
        ),
        ("not UTF-8", changed(|block| block[0] = 0xff)),
        ("malformed", raw(b"99 path=x\n")),
        ("malformed", raw(b"path=x\n")),
        ("malformed", raw(b"5 a=b")),
        ("malformed", raw(b"0 \n")),
        ("malformed", records(&[("size", "-1")])),
        ("too many extended headers", many.file("f", b"x").finish()),
        ("an extended header has", TarWriter::default().entry(b'x', "p", "", 0, &[0; 1 << 21]).finish()),
    ];
    for (expected, bytes) in cases {
        let error = entries(&bytes).expect_err(expected);
        assert!(matches!(error.kind(), ErrorKind::InvalidData | ErrorKind::UnexpectedEof), "{error}");
        assert!(error.to_string().contains(expected), "`{error}` for `{expected}`");
    }
    assert_eq!(entries(&whole).expect("the archive itself").len(), 1);
}
