//! Fuzz target of certificates, bundles and genesis files: untrusted bytes never panic their readers, and a
//! circle that is founded satisfies its invariants.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = human_chain::read_certificate(bytes);
    let _ = human_chain::read_bundle(bytes);
    if let Ok(genesis) = human_chain::read_genesis(bytes)
        && let Ok(state) = human_chain::CircleState::found(&genesis, None)
    {
        assert_eq!(state.check_invariants(), Ok(()));
    }
});
