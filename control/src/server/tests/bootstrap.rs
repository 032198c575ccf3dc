//! Tests of the bootstrap marker: only the first start after `control init` may create a log.

use super::circle::{genesis, replica};
use crate::server::{ServerConfig, create_replica, load_replica, start_replica};
use consensus::StartError;
use protocol::ReplicaId;
use std::fs;
use std::path::Path;

/// Starts replica 1 in this directory and stops it again; returns the code of the refusal, if any.
async fn start(directory: &Path) -> Result<(), String> {
    start_in(directory, 2).await
}

/// Starts the replica in the circle whose genesis names this port; such circles differ in nothing else.
async fn start_in(directory: &Path, port: u16) -> Result<(), String> {
    let listen = || async { overlay::listen::tcp("127.0.0.1:0").await.unwrap() };
    let address = ("127.0.0.1:1".to_string(), format!("http://127.0.0.1:{port}"));
    let config = ServerConfig {
        id: ReplicaId(1),
        directory: directory.into(),
        identity: replica(1),
        genesis: genesis(&[address], Vec::new()),
        overlay: listen().await,
        api: listen().await,
        certificate: None,
    };
    let started = tokio::task::spawn_blocking({
        let runtime = tokio::runtime::Handle::current();
        move || {
            let _entered = runtime.enter();
            start_replica(&config).map(drop)
        }
    });
    started.await.unwrap().map_err(|error| {
        let code = error.chain().find_map(|cause| cause.downcast_ref::<StartError>()).map(StartError::code);
        code.map_or_else(|| format!("{error:#}"), |code| code.to_string())
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_first_start_after_init_creates_a_log() {
    let temporary = tempfile::tempdir().unwrap();
    let (directory, log) = (temporary.path().join("control-1"), temporary.path().join("control-1/log"));
    let made = create_replica(&directory).unwrap();
    assert_eq!(start(&directory).await, Ok(()));
    assert_eq!(start(&directory).await, Ok(()), "it goes on from its log");
    let again = create_replica(&directory).unwrap();
    assert_eq!(again.public_key(), made.public_key(), "a second init prints the same entry");

    fs::rename(&log, temporary.path().join("kept")).unwrap();
    assert_eq!(start(&directory).await, Err("log-unknown".into()), "a log that is gone is not begun anew");
    create_replica(&directory).unwrap();
    assert_eq!(start(&directory).await, Err("log-unknown".into()), "nor after another init");
    fs::remove_dir_all(&log).unwrap();
    fs::rename(temporary.path().join("kept"), &log).unwrap();
    assert_eq!(start(&directory).await, Ok(()), "back in its place it is its log");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_restored_from_a_backup_cannot_create_a_log() {
    let temporary = tempfile::tempdir().unwrap();
    let (old, new) = (temporary.path().join("old"), temporary.path().join("new"));
    let made = create_replica(&old).unwrap();
    assert_eq!(start(&old).await, Ok(()));
    fs::create_dir(&new).unwrap();
    fs::copy(old.join("identity.key"), new.join("identity.key")).unwrap();
    assert_eq!(load_replica(&new).unwrap().public_key(), made.public_key());
    assert_eq!(start(&new).await, Err("log-unknown".into()));
    create_replica(&new).unwrap();
    assert_eq!(start(&new).await, Err("log-unknown".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_start_completes_a_first_start_that_was_killed() {
    let temporary = tempfile::tempdir().unwrap();
    let directory = temporary.path().join("control-1");
    // Killed before the key was made.
    create_replica(&directory).unwrap();
    fs::remove_file(directory.join("identity.key")).unwrap();
    create_replica(&directory).unwrap();
    // Killed after the log was created, with the marker still present.
    let leave = fs::read(directory.join("never-begun")).unwrap();
    assert_eq!(start(&directory).await, Ok(()));
    assert!(!directory.join("never-begun").exists(), "the first start takes the leave");
    fs::write(directory.join("never-begun"), leave).unwrap();
    assert_eq!(start(&directory).await, Ok(()));
    assert!(!directory.join("never-begun").exists());
    fs::remove_dir_all(directory.join("log")).unwrap();
    assert_eq!(start(&directory).await, Err("log-unknown".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_circle_rejects_the_log_of_the_previous_one() {
    let temporary = tempfile::tempdir().unwrap();
    let directory = temporary.path().join("control-1");
    create_replica(&directory).unwrap();
    let leave = fs::read(directory.join("never-begun")).unwrap();
    assert_eq!(start_in(&directory, 2).await, Ok(()));
    // The same keys and numbers with another genesis are refused, even if the bootstrap marker is present.
    assert_eq!(start_in(&directory, 3).await, Err("log-foreign".into()));
    fs::write(directory.join("never-begun"), leave).unwrap();
    assert_eq!(start_in(&directory, 3).await, Err("log-foreign".into()));
    assert_eq!(start_in(&directory, 2).await, Ok(()), "the log is as it was");
    fs::rename(directory.join("log"), temporary.path().join("kept")).unwrap();
    create_replica(&temporary.path().join("another")).unwrap();
    fs::copy(temporary.path().join("another/never-begun"), directory.join("never-begun")).unwrap();
    assert_eq!(start_in(&directory, 3).await, Ok(()), "an empty directory may be founded in");
}

#[test]
fn a_directory_that_was_never_prepared_is_refused_by_code_and_says_how() {
    let temporary = tempfile::tempdir().unwrap();
    let directory = temporary.path().join("control-1");
    let refused = |error: anyhow::Error| error.to_string();
    let said = load_replica(&directory).map(|_| ()).map_err(refused).unwrap_err();
    let command = format!("quorate control init --dir {} --id", directory.display());
    assert!(said.starts_with("replica-not-prepared: ") && said.contains(&command), "{said}");
    create_replica(&directory).unwrap();
    load_replica(&directory).unwrap();
}
