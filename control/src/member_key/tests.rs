//! Tests of key files: read as written, refused when damaged, and opened by their passphrase alone.

use super::*;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

/// Cost of the tests: little, so that they are quick.
const CHEAP: SealingCost = SealingCost { memory_kib: 64, passes: 1, lanes: 1 };
const PASSPHRASE: &str = "correct horse battery staple";

fn alice() -> MemberKeyFile {
    MemberKeyFile::generate("alice".parse().expect("a name"))
}

fn code<T>(outcome: Result<T>) -> Option<protocol::ErrorCode> {
    outcome.err()?.downcast_ref::<Refusal>().map(|refusal| refusal.code)
}

fn open(path: &Path, passphrase: &str) -> Result<MemberKey> {
    MemberKey::load_with(path, || Ok(Zeroizing::new(passphrase.to_string())))
}

fn no_passphrase() -> Result<Zeroizing<String>> {
    panic!("no passphrase is asked for")
}

/// Writes the text of a key file as another program could have.
fn plant(path: &Path, text: &serde_json::Value) {
    std::fs::write(path, text.to_string()).expect("written");
    std::fs::set_permissions(path, Permissions::from_mode(0o600)).expect("set");
}

/// Returns a sealed key in a folder, with its path.
fn sealed() -> (tempfile::TempDir, PathBuf, MemberKeyFile) {
    let directory = tempfile::tempdir().expect("temporary directory");
    let path = directory.path().join("alice.key");
    let written = alice();
    written.write_sealed(&path, PASSPHRASE, CHEAP).expect("saved");
    (directory, path, written)
}

/// Reads the file as JSON, lets a test alter it, and plants it again with a checksum that matches.
fn altered(path: &Path, alter: impl FnOnce(&mut serde_json::Value)) {
    let text = std::fs::read(path).expect("read");
    let mut value: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
    alter(&mut value);
    if let Ok(mut text) = serde_json::from_value::<MemberKeyText>(value.clone()) {
        text.checksum = text.digest().expect("a digest");
        value = serde_json::to_value(&text).expect("JSON");
    }
    plant(path, &value);
}

#[test]
fn a_member_key_is_read_as_it_was_written_unless_other_users_can_read_it() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let path = directory.path().join("alice.key");
    let written = alice();
    written.save(&path).expect("saved");
    let read = MemberKey::load_with(&path, no_passphrase).expect("a new file is private");
    assert_eq!(read.member, written.member);
    assert_eq!(read.signer.public_keys(), written.secret.public());
    assert!(
        std::fs::read_to_string(&path).expect("read").contains("\"unencrypted\""),
        "the form is explicit"
    );
    std::fs::set_permissions(&path, Permissions::from_mode(0o640)).expect("set");
    let error = MemberKey::load(&path).err().expect("others can read it").to_string();
    assert!(error.contains("alice.key") && error.contains("mode 640"), "{error}");
}

/// Attack: an existing secret is overwritten by a new one.
#[test]
fn a_key_is_never_overwritten() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let path = directory.path().join("keys/alice.key");
    let first = alice();
    first.save(&path).expect("a new file, in a new folder");
    for outcome in [alice().save(&path), alice().write_sealed(&path, PASSPHRASE, CHEAP)] {
        assert_eq!(code(outcome), Some(error_code::KEY_EXISTS));
    }
    let kept = |path: &Path| MemberKey::load(path).expect("a key").signer.public_keys();
    assert_eq!(kept(&path), first.secret.public());
    // Positive control: a write that replaces a file, as it was before, loses the first key.
    let text = std::fs::read(&path).expect("read");
    alice().save(&directory.path().join("second.key")).expect("saved");
    let second = std::fs::read(directory.path().join("second.key")).expect("read");
    files::write_secret(&path, &second).expect("replaced");
    assert_ne!(kept(&path), first.secret.public());
    assert_ne!(std::fs::read(&path).expect("read"), text);
}

#[test]
fn a_damaged_member_key_is_refused_with_its_path() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let path = directory.path().join("alice.key");
    let missing = MemberKey::load(&path);
    assert_eq!(code(missing), Some(error_code::KEY_FILE_UNUSABLE));
    for text in ["", "{}", r#"{"member": "alice", "secret": "00"}"#, &"x".repeat(FILE_BYTES_MAX + 1)] {
        std::fs::write(&path, text).expect("written");
        std::fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("set");
        let error = MemberKey::load(&path).err().expect("damaged");
        let message = error.to_string();
        assert!(message.contains("member key `") && message.contains("alice.key"), "{message}");
        assert_eq!(code::<()>(Err(error)), Some(error_code::KEY_FILE_UNUSABLE));
    }
}

#[test]
fn a_sealed_key_opens_by_its_passphrase_alone() {
    let (_directory, path, written) = sealed();
    let text = std::fs::read_to_string(&path).expect("read");
    let secret = hex::encode(written.secret.to_bytes().as_slice());
    assert!(
        text.contains("\"argon2id\"") && !text.contains(&secret[..64]),
        "no part of the secret is readable"
    );
    assert_eq!(open(&path, PASSPHRASE).expect("opened").signer.public_keys(), written.secret.public());
    for wrong in ["", "correct horse battery stapl", "Correct horse battery staple"] {
        assert_eq!(code(open(&path, wrong)), Some(error_code::KEY_PASSPHRASE_WRONG), "{wrong}");
    }
}

/// A wrong passphrase and a damaged file are two errors. A person who mistypes must not give a key up, and a
/// person with a damaged file must not type forever.
#[test]
fn a_damaged_sealed_key_is_not_called_a_wrong_passphrase() {
    let (_directory, path, _) = sealed();
    let whole = std::fs::read_to_string(&path).expect("read");
    let at = whole.find("\"sealed\":\"").expect("a field") + 40;
    let digit = if &whole[at..=at] == "0" { "1" } else { "0" };
    let damaged = format!("{}{digit}{}", &whole[..at], &whole[at + 1..]);
    std::fs::write(&path, damaged).expect("written");
    let error = MemberKey::load_with(&path, no_passphrase).err().expect("damaged");
    assert!(error.to_string().contains("its checksum does not match"), "{error}");
    assert_eq!(code::<()>(Err(error)), Some(error_code::KEY_FILE_UNUSABLE));
    // Control: without the checksum, the same damage looks like a wrong passphrase.
    altered(&path, |_| ());
    assert_eq!(code(open(&path, PASSPHRASE)), Some(error_code::KEY_PASSPHRASE_WRONG));
}

/// Attack: a key is filed under another member, or its cost is lowered, and the checksum is made again.
#[test]
fn a_sealed_key_is_bound_to_its_member_and_its_cost() {
    for alter in [
        |text: &mut serde_json::Value| text["member"] = "bob".into(),
        |text: &mut serde_json::Value| text["key"]["encrypted"]["cost"]["memory_kib"] = 65.into(),
        |text: &mut serde_json::Value| text["key"]["encrypted"]["salt"] = "00".repeat(16).into(),
        |text: &mut serde_json::Value| text["key"]["encrypted"]["nonce"] = "00".repeat(12).into(),
        |text: &mut serde_json::Value| text["key"]["encrypted"]["nonce"] = "zz".into(),
    ] {
        let (_directory, path, _) = sealed();
        altered(&path, alter);
        assert_eq!(code(open(&path, PASSPHRASE)), Some(error_code::KEY_PASSPHRASE_WRONG));
    }
}

/// Attack: a planted key file asks for all memory or all time of the machine.
#[test]
fn attack_a_planted_key_file_exhausts_no_memory() {
    for (field, value) in [
        ("memory_kib", 256 * 1024 + 1),
        ("memory_kib", u32::MAX),
        ("memory_kib", 0),
        ("passes", 11),
        ("passes", u32::MAX),
        ("passes", 0),
        ("lanes", 9),
        ("lanes", 0),
    ] {
        let (_directory, path, _) = sealed();
        altered(&path, |text| text["key"]["encrypted"]["cost"][field] = value.into());
        // No passphrase is asked for, so nothing is derived.
        let error = MemberKey::load_with(&path, no_passphrase).err().expect("refused");
        assert!(error.to_string().contains(&format!("{field} is {value}; accepted")), "{error}");
        assert_eq!(code::<()>(Err(error)), Some(error_code::KEY_FILE_UNUSABLE));
    }
    // Control: the algorithm itself takes such a cost, and would ask for four terabytes.
    assert!(argon2::Params::new(u32::MAX, 1, 1, Some(32)).is_ok());
    let (_directory, path, _) = sealed();
    altered(&path, |text| text["key"]["encrypted"]["derivation"] = "md5".into());
    let error = MemberKey::load_with(&path, no_passphrase).err().expect("refused").to_string();
    assert!(error.contains("another algorithm than argon2id"), "{error}");
}

#[test]
fn the_default_cost_is_within_the_limits_and_opens() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let path = directory.path().join("alice.key");
    let written = alice();
    written.save_sealed(&path, PASSPHRASE).expect("saved");
    assert_eq!(open(&path, PASSPHRASE).expect("opened").signer.public_keys(), written.secret.public());
}
