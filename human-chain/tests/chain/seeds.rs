//! Seeds of the fuzz target `certificate`. They are of the present format, so that the fuzzer begins behind
//! the readers' first checks. `REFRESH_GOLDEN=1` writes them again; signatures differ each time.

use crate::support::{NOW, circle, deploy, enact, genesis, signed};
use human_chain::{CircleState, read_bundle, read_certificate, read_genesis, verify, verify_replay};
use protocol::canonical::to_bytes;
use protocol::governance::{BUNDLE_VERSION, Bundle, LogEvidence};
use std::path::Path;

#[expect(clippy::disallowed_methods, reason = "a test may ask to rewrite the seeds")]
fn write(folder: &Path) {
    let certificate = enact(&mut circle(), deploy(2), &["alice", "bob"]);
    let bare = Bundle { version: BUNDLE_VERSION, certificate: certificate.clone(), log_evidence: None };
    let bundle = Bundle { log_evidence: Some(LogEvidence { sequence: 7 }), ..bare.clone() };
    for (name, bytes) in [
        ("SignedGenesis", to_bytes(&signed(genesis()))),
        ("Certificate", to_bytes(&certificate)),
        ("Bundle", to_bytes(&bundle)),
        ("Bundle-bare", to_bytes(&bare)),
    ] {
        std::fs::write(folder.join(name), bytes).expect("writable");
    }
}

#[test]
#[expect(clippy::disallowed_methods, reason = "the seeds are files of bytes")]
fn every_seed_of_the_fuzzer_passes_the_readers_and_verifies() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds/certificate");
    if std::env::var_os("REFRESH_GOLDEN").is_some() {
        write(&folder);
    }
    let read = |name: &str| std::fs::read(folder.join(name)).expect("a seed");
    let genesis = read_genesis(&read("SignedGenesis")).expect("a genesis");
    let state = CircleState::found(&genesis, None).expect("a sound one");
    let certificate = read_certificate(&read("Certificate")).expect("a certificate");
    assert!(verify(&state, &certificate, NOW).is_ok(), "of the circle of that genesis");
    for name in ["Bundle", "Bundle-bare"] {
        let bundle = read_bundle(&read(name)).expect("a bundle");
        assert!(verify_replay(&state, &bundle.certificate).is_ok(), "{name}");
    }
    assert_eq!(std::fs::read_dir(&folder).expect("a folder").count(), 4, "no seed is left out here");
}
