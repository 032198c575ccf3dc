//! Tests of inference keys at a gateway's agent: control hands in what no member granted, or withholds a
//! revocation.
#![allow(clippy::unwrap_used)]

use super::super::core::testing::{NOW, TestCircle};
use super::*;
use human_chain::sign_revocation;
use protocol::access::{
    ACCESS_VERSION, AccessEnvelope, AccessGrant, AccessRevocation, SignedGrant, SignedRevocation,
};
use protocol::governance::{Change, TokenScope};

struct Fixture {
    directory: tempfile::TempDir,
    world: TestCircle,
    file: AccessFile,
}

impl Fixture {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let world = TestCircle::new(vec![], &["127.0.0.1:1".into()], NOW);
        let file = AccessFile::open(directory.path().join("access"), world.state.id()).unwrap();
        Self { directory, world, file }
    }

    /// Returns a grant of an inference key by alice.
    fn grant(&self, holder: &str) -> AccessGrant {
        self.world.key_grant(holder)
    }

    fn signed(&self, grant: AccessGrant) -> SignedGrant {
        self.world.sign_grant(grant)
    }

    fn revoked(&self, grant: AccessGrant) -> SignedRevocation {
        let (member, secret) = &self.world.founders[0];
        let member = member.clone();
        sign_revocation(secret, AccessRevocation { version: ACCESS_VERSION, grant, member, issued_at: NOW })
    }

    fn take(&mut self, record: AccessRecord, now: Millis) -> Result<bool, String> {
        let outcome = self.file.take(&self.world.state, record, now);
        self.file.save().unwrap();
        outcome.map_err(|error| error.code().to_string())
    }

    fn keys(&self, now: Millis) -> Vec<String> {
        let keys = self.file.book().keys(&self.world.state, now);
        keys.iter().map(|key| key.name.to_string()).collect()
    }

    /// Restarts the agent.
    fn restart(&mut self) {
        let path = self.directory.path().join("access");
        self.file = AccessFile::open(path, self.world.state.id()).unwrap();
    }
}

/// Attack: control makes API keys up, alters one, or hands in one of a member that may grant none.
#[test]
fn a_key_that_no_member_granted_is_not_passed_on() {
    let mut node = Fixture::new();
    let sound = node.signed(node.grant("app"));
    let mut altered = sound.clone();
    altered.grant.secret = Digest::of(b"of control");
    let mut made_up = sound.clone();
    made_up.grant.holder = "control".parse().unwrap();
    let mut expired = node.grant("old");
    (expired.issued_at, expired.expires_at) = (Millis(NOW.0 - 2000), Millis(NOW.0 - 1000));
    let expired = node.signed(expired);
    for (attack, code) in
        [(altered, "signature-invalid"), (made_up, "signature-invalid"), (expired, "grant-expired")]
    {
        assert_eq!(node.take(AccessRecord::Grant(attack), NOW), Err(code.to_string()));
    }
    assert_eq!(node.keys(NOW), Vec::<String>::new());
    assert_eq!(node.take(AccessRecord::Grant(sound.clone()), NOW), Ok(true), "the positive control");
    assert_eq!(node.take(AccessRecord::Grant(sound), NOW), Ok(false));
    assert_eq!(node.keys(NOW), ["app"]);
    assert_eq!(node.keys(NOW.plus(3_600_000)), Vec::<String>::new(), "it expires here");
}

#[test]
fn the_envelope_in_force_decides_what_is_passed_on() {
    let mut node = Fixture::new();
    let grant = node.signed(node.grant("app"));
    assert_eq!(node.take(AccessRecord::Grant(grant.clone()), NOW), Ok(true));
    let of_bob = AccessEnvelope::standard([node.world.founders[1].0.clone()]);
    node.world.decide(Change::SetAccess(Box::new(of_bob)));
    assert_eq!(node.keys(NOW), Vec::<String>::new(), "alice may grant no longer");
    node.file.follow(&node.world.state, NOW);
    assert_eq!(node.take(AccessRecord::Grant(grant), NOW), Err("grantor-refused".to_string()));
}

/// Attack: control withholds a revocation from a restarted agent and hands in the key again.
#[test]
fn a_revoked_key_stays_revoked_after_a_restart() {
    let mut node = Fixture::new();
    let (grant, revocation) = (node.signed(node.grant("app")), node.revoked(node.grant("app")));
    assert_eq!(node.take(AccessRecord::Grant(grant.clone()), NOW), Ok(true));
    node.restart();
    assert_eq!(node.keys(NOW), ["app"], "keys outlive the agent");
    assert_eq!(node.take(AccessRecord::Revocation(revocation), NOW), Ok(true));
    assert_eq!(node.keys(NOW), Vec::<String>::new());
    node.restart();
    let again = AccessRecord::Grant(grant);
    assert_eq!(node.take(again.clone(), NOW), Err("grant-revoked".to_string()));
    // The positive control: without its file the agent would pass the key on again.
    std::fs::remove_file(node.directory.path().join("access")).unwrap();
    node.restart();
    assert_eq!(node.take(again, NOW), Ok(true));
}

#[test]
fn tokens_of_people_are_not_kept_at_a_gateway() {
    let mut node = Fixture::new();
    let access = GrantedAccess::Token { scopes: [TokenScope::Read].into() };
    let token = AccessGrant { access, ..node.grant("bob") };
    let (signed, revoked) = (node.signed(token.clone()), node.revoked(token));
    assert_eq!(node.take(AccessRecord::Grant(signed), NOW), Ok(false));
    assert_eq!(node.take(AccessRecord::Revocation(revoked), NOW), Ok(false));
    assert_eq!(node.file.book().last(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_was_refused_is_asked_for_again() {
    let mut node = Fixture::new();
    let repeats = node.file.repeats();
    let mut forged = node.signed(node.grant("app"));
    forged.grant.secret = Digest::of(b"of control");
    assert!(node.take(AccessRecord::Grant(forged.clone()), NOW).is_err());
    node.file.repeat_if_due();
    assert_eq!(*repeats.borrow(), 0, "not at once");
    tokio::time::advance(REPEAT_PAUSE).await;
    node.file.repeat_if_due();
    assert_eq!(*repeats.borrow(), 1);
    // Junk without end is asked for more and more rarely, and a decision of the circle resets that.
    for _ in 0..20 {
        assert!(node.take(AccessRecord::Grant(forged.clone()), NOW).is_err());
        tokio::time::advance(REPEAT_PAUSE).await;
        node.file.repeat_if_due();
    }
    assert!(*repeats.borrow() <= 5, "{}", *repeats.borrow());
    let before = *repeats.borrow();
    assert!(node.take(AccessRecord::Grant(forged), NOW).is_err());
    node.file.follow(&node.world.state, NOW);
    node.file.repeat_if_due();
    assert_eq!(*repeats.borrow(), before + 1);
}

#[test]
fn a_damaged_file_stops_the_agent() {
    let node = Fixture::new();
    let path = node.directory.path().join("access");
    std::fs::write(&path, [7; 100]).unwrap();
    let error = AccessFile::open(path, node.world.state.id()).unwrap_err();
    assert_eq!(error.code(), error_code::AGENT_STATE_UNUSABLE);
    assert!(error.to_string().contains("its bytes are damaged"), "{error}");
}
