//! Owner tests: a log opens only for its owner, which each of its files names.

use super::*;

/// Creates a log of three entries and a snapshot of the second, and closes it.
fn log_of(owner: &Owner) -> TempDir {
    let directory = TempDir::new().expect("temporary directory");
    let (log, _) = open_as(directory.path(), owner, true).expect("a new log");
    log.write(&[hard_state(1, 0), entries(1..=3, 100), hard_state(1, 3)]).expect("space");
    log.save_snapshot(&snapshot(2)).expect("space");
    directory
}

fn open_as(directory: &Path, owner: &Owner, create: bool) -> Result<(WriteAheadLog, Recovered), StartError> {
    WriteAheadLog::open(directory, owner.clone(), create, SEGMENT_BYTES)
}

/// Copies the files whose names begin with `names`.
fn copy(from: &Path, to: &Path, names: &str) {
    let files = fs::read_dir(from).expect("list").flatten();
    let mut copied = 0;
    for file in files.filter(|file| file.file_name().to_string_lossy().starts_with(names)) {
        fs::copy(file.path(), to.join(file.file_name())).expect("copy");
        copied += 1;
    }
    assert!(copied > 0, "no file `{names}`");
}

/// Opens the log as `wanted`, and checks that the refusal names this file and its owner.
fn check_foreign(directory: &Path, wanted: &Owner, file: &str, found: &str) {
    for create in [false, true] {
        let error = refusal(open_as(directory, wanted, create));
        assert_eq!(error.code().as_str(), "log-foreign", "{error}");
        let text = error.to_string();
        let path = directory.join(file).display().to_string();
        assert!(text.contains(&path) && text.contains(&format!("belongs to {found}")), "{text}");
        let asked = format!("not to replica {} of group {}", wanted.id, wanted.group);
        assert!(text.contains(&asked), "{text}");
    }
}

fn other_owners() -> [(Owner, String); 3] {
    let group = GroupId([7; 32]);
    let seven = "07".repeat(32);
    [
        (Owner { group: GroupId([8; 32]), ..owner(1) }, format!("replica 1 of group {seven},")),
        (owner(2), format!("replica 1 of group {seven},")),
        (
            Owner { group, id: ReplicaId(1), voters: [1, 2].map(ReplicaId).to_vec() },
            format!("replica 1 of group {seven} with other voters,"),
        ),
    ]
}

#[test]
fn the_log_of_another_group_replica_or_membership_is_rejected() {
    let log = log_of(&owner(1));
    for (other, found) in other_owners() {
        check_foreign(log.path(), &other, "durable.mark", &found);
    }
    let (_, found) = open_as(log.path(), &owner(1), false).expect("its own log");
    assert_eq!(found.entries.len(), 1);
}

#[test]
fn each_file_of_another_log_is_rejected() {
    let theirs = log_of(&owner(1));
    for (own, found) in other_owners() {
        for (names, file) in [
            ("snapshot-", "snapshot-0000000000000002.snap"),
            ("durable.mark", "durable.mark"),
            ("segment-", "segment-0000000000000000.log"),
        ] {
            let ours = log_of(&own);
            copy(theirs.path(), ours.path(), names);
            check_foreign(ours.path(), &own, file, &found);
            copy(log_of(&own).path(), ours.path(), names);
            if names == "snapshot-" {
                open_as(ours.path(), &own, false).expect("its own snapshot back in its place");
            }
        }
    }
}

#[test]
fn a_new_log_is_not_created_beside_a_file_of_another() {
    let theirs = log_of(&owner(1));
    for (own, found) in other_owners() {
        for (names, file) in
            [("snapshot-", "snapshot-0000000000000002.snap"), ("durable.mark", "durable.mark")]
        {
            let empty = TempDir::new().expect("temporary directory");
            copy(theirs.path(), empty.path(), names);
            check_foreign(empty.path(), &own, file, &found);
        }
    }
    let empty = TempDir::new().expect("temporary directory");
    open_as(empty.path(), &owner(2), true).expect("an empty directory");
}
