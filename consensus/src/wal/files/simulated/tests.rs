//! Tests of the simulated directory: durability, loss and torn writes.

use super::*;

fn file(files: &SimulatedFiles, name: &str, bytes: &[u8]) -> Box<dyn File> {
    let file = files.directory().create(name).expect("alive");
    file.write_at(bytes, 0).expect("room");
    file
}

fn content(files: &SimulatedFiles, name: &str) -> Option<Vec<u8>> {
    let opened = files.directory().open(name).expect("alive");
    opened.map(|file| file.read().expect("alive"))
}

#[test]
fn synced_bytes_survive_and_unsynced_ones_are_lost_by_sectors() {
    let mut found = std::collections::BTreeSet::new();
    for seed in 0..200 {
        let files = SimulatedFiles::new(seed);
        let written = file(&files, "a", &[1; 1024]);
        written.sync().expect("a healthy disk");
        files.directory().sync().expect("a healthy disk");
        written.write_at(&[2; 1024], 0).expect("room");
        written.write_at(&[3; 100], 0).expect("room");
        files.kill();
        let now = content(&files, "a").expect("a kill loses nothing");
        assert_eq!((now[0], now[100], now[1023]), (3, 2, 2));
        files.crash();
        let left = content(&files, "a").expect("its name is durable");
        assert!(left[..100].iter().all(|byte| *byte == left[0]), "within a sector a write comes whole");
        assert!(left[512..].iter().all(|byte| *byte == left[512]));
        found.insert((left[0], left[100], left[512]));
    }
    let (one, two) = ([(1, 1), (2, 2), (3, 2)], [1, 2]);
    let all = one.iter().flat_map(|(a, b)| two.map(|c| (*a, *b, c))).collect();
    assert_eq!(found, all, "each sector in any of its states, whatever the other is in");
}

#[test]
fn names_are_lost_until_the_directory_is_synced() {
    let mut found = std::collections::BTreeSet::new();
    for seed in 0..200 {
        let files = SimulatedFiles::new(seed);
        file(&files, "old", b"old").sync().expect("a healthy disk");
        files.directory().sync().expect("a healthy disk");
        file(&files, "new", b"new").sync().expect("a healthy disk");
        files.directory().rename("new", "newer").expect("it is there");
        files.directory().remove("old").expect("it is there");
        files.crash();
        found.insert(files.directory().list().expect("alive").join(" "));
    }
    let all = ["", "new", "new old", "newer", "newer old", "old"].map(str::to_owned);
    assert_eq!(found, all.into());
}

#[test]
fn bytes_of_a_failed_sync_are_visible_and_never_durable() {
    let mut lost = 0;
    for seed in 0..50 {
        let files = SimulatedFiles::new(seed);
        let written = file(&files, "a", &[1; 512]);
        written.sync().expect("a healthy disk");
        files.directory().sync().expect("a healthy disk");
        written.write_at(&[2; 512], 0).expect("room");
        files.fail_next_sync();
        assert!(written.sync().is_err());
        written.sync().expect("the disk works again");
        assert_eq!(content(&files, "a").expect("there")[0], 2);
        files.crash();
        lost += u32::from(content(&files, "a").expect("there")[0] == 1);
    }
    assert!((10..40).contains(&lost), "{lost} of 50");
}

#[test]
fn a_full_disk_still_overwrites_and_a_dead_process_writes_nothing() {
    let files = SimulatedFiles::new(1);
    let written = file(&files, "a", &[1; 10]);
    files.set_full(true);
    written.write_at(&[2; 10], 0).expect("no growth");
    let refused = written.write_at(&[2; 11], 0).expect_err("growth");
    assert_eq!(refused.kind(), ErrorKind::StorageFull);
    files.set_full(false);
    written.write_at(&[2; 11], 0).expect("room");
    let directory = files.directory();
    let lock = directory.lock().expect("free");
    assert!(matches!(directory.lock(), Err(LogError::InUse { .. })));
    files.kill();
    assert!(written.write_at(&[3; 1], 0).is_err() && directory.create("b").is_err());
    let _next = files.directory().lock().expect("free: its holder is gone");
    drop(lock);
    assert!(files.directory().lock().is_err(), "the dead one does not free what the next one holds");
}

#[test]
fn power_is_cut_in_the_middle_of_a_change() {
    let files = SimulatedFiles::new(1);
    files.cut_power_after(2);
    let written = file(&files, "a", b"first");
    assert!(written.write_at(b"second", 0).is_err(), "the third change");
    assert!(written.sync().is_err() && files.directory().sync().is_err(), "and all after it");
    files.crash();
    file(&files, "a", b"again").sync().expect("power is back");
}
