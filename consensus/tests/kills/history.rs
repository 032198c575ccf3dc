//! Linearizability checker for an append-only list, in which every line must appear exactly once.
//!
//! The final list gives every operation its point in the order: an append is at its line, a read after the
//! last line seen. The remaining check is that these points never contradict real time.

use std::collections::BTreeSet;

/// Observation of a client.
#[derive(Debug, Clone)]
pub(crate) enum ClientObservation {
    /// The client's line is the list's `position`-th, counted from 1.
    Appended { line: String, position: usize },
    /// The list had `length` lines, and this digest.
    Read { length: usize, digest: String },
}

/// One finished operation. `begin` and `end` come from one counter, so they order the observations of one
/// process.
#[derive(Debug, Clone)]
pub(crate) struct Operation {
    pub(crate) begin: u64,
    pub(crate) end: u64,
    pub(crate) seen: ClientObservation,
}

/// Digest of an empty list.
pub(crate) const EMPTY: [u8; 32] = [0; 32];

/// Returns the digest of a list with one more line.
pub(crate) fn digest(before: &[u8; 32], line: &str) -> [u8; 32] {
    *blake3::Hasher::new().update(before).update(line.as_bytes()).finalize().as_bytes()
}

/// Checks the observations of all clients against the final list.
pub(crate) fn check(list: &[String], operations: &[Operation]) -> Result<(), String> {
    let mut distinct = BTreeSet::new();
    if let Some(twice) = list.iter().find(|line| !distinct.insert(line.as_str())) {
        return Err(format!("`{twice}` was applied twice"));
    }
    let mut digests = vec![EMPTY];
    for line in list {
        digests.push(digest(&digests[digests.len() - 1], line));
    }
    for operation in operations {
        check_one(list, &digests, &operation.seen)?;
    }
    check_real_time(operations)
}

fn check_one(list: &[String], digests: &[[u8; 32]], seen: &ClientObservation) -> Result<(), String> {
    match seen {
        ClientObservation::Appended { line, position } => {
            match position.checked_sub(1).and_then(|position| list.get(position)) {
                Some(found) if found == line => Ok(()),
                found => {
                    Err(format!("`{line}` was acknowledged in position {position}, where {found:?} stands"))
                }
            }
        }
        ClientObservation::Read { length, digest } => match digests.get(*length) {
            Some(found) if blake3::Hash::from(*found).to_hex().as_str() == digest => Ok(()),
            Some(_) => Err(format!("a read of {length} lines saw other lines")),
            None => Err(format!("a read saw {length} lines, of which {} are left", list.len())),
        },
    }
}

/// Checks that an operation that ended before another began does not follow it in the order.
fn check_real_time(operations: &[Operation]) -> Result<(), String> {
    let mut by_begin: Vec<&Operation> = operations.iter().collect();
    let mut by_end = by_begin.clone();
    by_begin.sort_by_key(|operation| operation.begin);
    by_end.sort_by_key(|operation| operation.end);
    let mut ended = by_end.into_iter().peekable();
    let mut highest: Option<&Operation> = None;
    for later in by_begin {
        while let Some(earlier) = ended.next_if(|earlier| earlier.end < later.begin) {
            if highest.is_none_or(|highest| point(&highest.seen) < point(&earlier.seen)) {
                highest = Some(earlier);
            }
        }
        if let Some(earlier) = highest.filter(|earlier| point(&earlier.seen) > point(&later.seen)) {
            return Err(format!("{later:?} did not see {earlier:?}, which had ended before it began"));
        }
    }
    Ok(())
}

/// Returns an operation's point in the order; reads are between the lines.
fn point(seen: &ClientObservation) -> usize {
    match seen {
        ClientObservation::Appended { position, .. } => 2 * position,
        ClientObservation::Read { length, .. } => 2 * length + 1,
    }
}

/// Test of the checker itself: it must detect every kind of violation.
#[test]
fn bad_histories_are_found() {
    let append = |begin: u64, end: u64, line: &str, position: usize| Operation {
        begin,
        end,
        seen: ClientObservation::Appended { line: line.to_owned(), position },
    };
    let read = |begin: u64, end: u64, lines: &[&str]| {
        let bytes = lines.iter().fold(EMPTY, |before, line| digest(&before, line));
        let digest = blake3::Hash::from(bytes).to_hex().to_string();
        Operation { begin, end, seen: ClientObservation::Read { length: lines.len(), digest } }
    };
    let judge = |list: &[&str], operations: &[Operation], expected: &str| {
        let list: Vec<String> = list.iter().map(|line| (*line).to_owned()).collect();
        let found = check(&list, operations).err().unwrap_or_else(|| "good".to_owned());
        assert!(found.contains(expected), "{found}");
    };
    let a = append(0, 1, "a", 1);
    judge(&["a", "b"], &[a.clone(), append(2, 3, "b", 2), read(4, 5, &["a", "b"])], "good");
    judge(&["a", "b"], &[a.clone(), append(2, 5, "b", 2), read(3, 4, &["a"])], "good");
    judge(&["b", "a"], &[append(0, 3, "a", 2), append(1, 2, "b", 1)], "good");
    judge(&["b", "unknown", "a"], &[append(0, 3, "a", 3), append(1, 2, "b", 1)], "good");
    judge(&["a", "a"], std::slice::from_ref(&a), "applied twice");
    judge(&[], std::slice::from_ref(&a), "acknowledged in position 1");
    judge(&["b", "a"], std::slice::from_ref(&a), "acknowledged in position 1");
    judge(&["a"], &[a.clone(), read(2, 3, &["a", "b"])], "of which 1 are left");
    judge(&["a", "b"], &[read(2, 3, &["b"])], "saw other lines");
    judge(&["a", "b"], &[a.clone(), read(2, 3, &[])], "did not see");
    judge(&["a", "b"], &[read(0, 1, &["a", "b"]), read(2, 3, &["a"])], "did not see");
    judge(&["a", "b"], &[append(0, 1, "b", 2), append(2, 3, "a", 1)], "did not see");
    judge(&["a", "b"], &[read(0, 1, &["a", "b"]), append(2, 3, "b", 2)], "did not see");
}
