//! Peer of `bench human-chain`: tough reads and verifies TUF metadata of a given threshold.
//!
//! `tough-peer REQUIRED KEYS` makes a root with this many Ed25519 keys and targets signed by as many of them
//! as are required. It prints the size of the targets in bytes. For each number that it then reads from its
//! standard input, it reads and verifies the targets as often, and prints the durations in nanoseconds.

use ed25519_dalek::{Signer, SigningKey};
use serde_json::{Value, json};
use std::error::Error;
use std::io::BufRead;
use std::time::Instant;
use tough::schema::key::Key;
use tough::schema::{Role, Root, Signed, Targets};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<usize> =
        std::env::args().skip(1).map(|text| text.parse()).collect::<Result<_, _>>()?;
    let [required, count] = arguments[..] else {
        return Err("give the threshold and the number of keys".into());
    };
    let (root, targets) = metadata(required, count)?;
    verify(&root, &targets)?;
    println!("{}", targets.len());
    for line in std::io::stdin().lock().lines() {
        let mut durations = Vec::new();
        for _ in 0..line?.trim().parse::<usize>()? {
            let began = Instant::now();
            verify(&root, &targets)?;
            durations.push(began.elapsed().as_nanos().to_string());
        }
        println!("{}", durations.join(" "));
    }
    Ok(())
}

/// Reads targets from their bytes, and verifies them against the root's keys and threshold.
fn verify(root: &Root, targets: &[u8]) -> Result<(), Box<dyn Error>> {
    let targets: Signed<Targets> = serde_json::from_slice(targets)?;
    Ok(root.verify_role(&targets)?)
}

/// Returns a root, and the bytes of targets that its first keys sign.
fn metadata(required: usize, count: usize) -> Result<(Root, Vec<u8>), Box<dyn Error>> {
    let mut keys = serde_json::Map::new();
    let mut signers = Vec::new();
    for number in 0..count {
        let secret = SigningKey::from_bytes(&[number as u8 + 1; 32]);
        let public = hex(secret.verifying_key().as_bytes());
        let key = json!({ "keytype": "ed25519", "scheme": "ed25519", "keyval": { "public": public } });
        let id = hex(&serde_json::from_value::<Key>(key.clone())?.key_id()?);
        keys.insert(id.clone(), key);
        signers.push((id, secret));
    }
    let ids: Vec<&String> = signers.iter().map(|(id, _)| id).collect();
    let role = json!({ "keyids": ids, "threshold": required });
    let expires = "2036-01-01T00:00:00Z";
    let root: Root = serde_json::from_value(json!({
        "_type": "root", "spec_version": "1.0.0", "consistent_snapshot": true, "version": 1,
        "expires": expires, "keys": keys,
        "roles": { "root": role, "snapshot": role, "targets": role, "timestamp": role },
    }))?;
    let signed: Value = json!({
        "_type": "targets", "spec_version": "1.0.0", "version": 1, "expires": expires,
        "targets": { "embed.toml": { "length": 600, "hashes": { "sha256": "ab".repeat(32) } } },
    });
    let canonical = serde_json::from_value::<Targets>(signed.clone())?.canonical_form()?;
    let signatures: Vec<Value> = signers
        .iter()
        .take(required)
        .map(|(id, secret)| json!({ "keyid": id, "sig": hex(&secret.sign(&canonical).to_bytes()) }))
        .collect();
    Ok((root, serde_json::to_vec(&json!({ "signed": signed, "signatures": signatures }))?))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
