//! Sign-in of browsers: one-time links, and the sessions that begin with them.
//!
//! A link works once, for minutes, and begins a session with the rights of the visitor that asked for it.
//! Only digests of codes and session keys are kept, so nothing that is read from here signs a browser in. All
//! of it is in memory: a restart ends every session. Each visitor has few links and sessions, of which the
//! oldest gives way, so no visitor can sign another one out.
//!
//! Challenges for passkeys are kept nowhere: each carries its time and a seal of this console. An
//! unauthenticated client may therefore ask for any number of them, and evicts none of another visitor.

use host::Clock;
use host::random::random_bytes;
use human_chain::CircleState;
use protocol::governance::TokenScope;
use protocol::keys::ByteString;
use protocol::{BootTime, Digest, MemberId, Refusal, TokenName, error_code};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Life of a one-time link in milliseconds: five minutes, enough to open it on another device.
pub const LINK_LIFE_MS: u64 = 5 * 60 * 1000;
/// Longest life of a session in milliseconds: a working day.
const SESSION_LIFE_MS: u64 = 12 * 3600 * 1000;
/// Longest pause between two requests of a session in milliseconds: an hour.
const SESSION_IDLE_MS: u64 = 3600 * 1000;
/// Most links of one visitor that wait to be opened.
const LINKS_PER_VISITOR_MAX: usize = 4;
/// Most sessions of one visitor: its devices.
const SESSIONS_PER_VISITOR_MAX: usize = 8;
/// Digest domain of the seal of a sign-in challenge. No other challenge of ours has the form of one, so an
/// assertion over it is none over a ballot.
const CHALLENGE_DOMAIN: &str = "quorate/console-sign-in/v1";
/// Length of the time in a challenge, in bytes.
const TIME_BYTES: usize = 8;
/// Length of the random part of a challenge in bytes: no two of one millisecond are equal.
const NONCE_BYTES: usize = 16;
/// Length of codes and session keys in bytes: not to be guessed.
const SECRET_BYTES: usize = 32;

/// Person or program that reads the pages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Visitor {
    /// The user of the machine on which `quorate console` runs.
    Owner {
        /// Member of the key that the command was given.
        member: Option<MemberId>,
    },
    /// Holder of an access token.
    Token {
        /// Name that people gave the token.
        name: TokenName,
        /// Digest of its text, by which it is looked up again at each request.
        hash: Digest,
        /// Scopes that it grants.
        scopes: BTreeSet<TokenScope>,
    },
    /// Member that signed in by passkey.
    Member {
        /// Member whose passkey it is.
        member: MemberId,
        /// Credential of the passkey. The session ends with it.
        credential: ByteString,
    },
}

impl Visitor {
    /// Returns the member, if the visitor is known to be one.
    #[must_use]
    pub fn member(&self) -> Option<&MemberId> {
        match self {
            Self::Owner { member } => member.as_ref(),
            Self::Token { .. } => None,
            Self::Member { member, .. } => Some(member),
        }
    }

    /// Returns whether the circle still vouches for a member that signed in by passkey: the passkey is the
    /// member's own, and the member is not suspended. New keys of a member drop its passkeys. Each request of
    /// a session asks again. Other visitors hold no passkey.
    #[must_use]
    pub fn holds_passkey(&self, circle: &CircleState) -> bool {
        let Self::Member { member, credential } = self else { return false };
        let is_own = circle.passkeys(member).iter().any(|passkey| passkey.credential == *credential);
        is_own && circle.active_member(member).is_ok()
    }

    /// Returns the visitor's name on a page.
    #[must_use]
    pub(crate) fn label(&self) -> String {
        match self {
            Self::Owner { member: None } => "reader without a key".into(),
            Self::Owner { member: Some(member) } | Self::Member { member, .. } => format!("member {member}"),
            Self::Token { name, .. } => format!("token {name}"),
        }
    }
}

/// A link that was not opened yet.
#[derive(Debug)]
struct SignInLink {
    visitor: Visitor,
    made_at: BootTime,
}

/// A signed-in browser.
#[derive(Debug)]
struct BrowserSession {
    visitor: Visitor,
    began_at: BootTime,
    seen_at: BootTime,
}

/// A challenge of this console: its time and its random part. Later ones are greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SignInChallenge {
    made_at: BootTime,
    nonce: [u8; NONCE_BYTES],
}

impl SignInChallenge {
    /// Returns the bytes that a passkey signs: the time, the random part, and the seal of both.
    fn sealed(&self, key: &ChallengeKey) -> Vec<u8> {
        [self.made_at.0.to_be_bytes().as_slice(), &self.nonce, &key.seal(self).0].concat()
    }

    /// Reads a challenge; none if it is not of this console.
    fn open(bytes: &[u8], key: &ChallengeKey) -> Option<Self> {
        let (made_at, rest) = bytes.split_first_chunk::<TIME_BYTES>()?;
        let (nonce, _) = rest.split_first_chunk::<NONCE_BYTES>()?;
        let challenge = Self { made_at: BootTime(u64::from_be_bytes(*made_at)), nonce: *nonce };
        (challenge.sealed(key) == bytes).then_some(challenge)
    }
}

/// Secret with which a console seals its challenges, until it ends.
struct ChallengeKey([u8; SECRET_BYTES]);

impl ChallengeKey {
    fn seal(&self, challenge: &SignInChallenge) -> Digest {
        let time = challenge.made_at.0.to_be_bytes();
        // Each part has one length, so no other parts have these bytes.
        let sealed = [self.0.as_slice(), &time, &challenge.nonce].concat();
        Digest::of_domain(CHALLENGE_DOMAIN, &sealed)
    }
}

impl std::fmt::Debug for ChallengeKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ChallengeKey")
    }
}

/// Links and sessions, by the digest of their secret.
#[derive(Debug, Default)]
struct SignInState {
    links: BTreeMap<Digest, SignInLink>,
    sessions: BTreeMap<Digest, BrowserSession>,
    /// Last challenge that each credential has answered, for as long as it is fresh: no assertion signs in
    /// twice. Only passkeys of the circle answer.
    answered: BTreeMap<ByteString, SignInChallenge>,
}

impl SignInState {
    fn add_link(&mut self, code: Digest, visitor: Visitor, now: BootTime) {
        self.links.retain(|_, link| now.since(link.made_at) < LINK_LIFE_MS);
        let own = self.links.iter().filter(|(_, link)| link.visitor == visitor);
        let own: Vec<(BootTime, Digest)> = own.map(|(code, link)| (link.made_at, *code)).collect();
        if let Some(oldest) = oldest_above(own, LINKS_PER_VISITOR_MAX) {
            self.links.remove(&oldest);
        }
        self.links.insert(code, SignInLink { visitor, made_at: now });
    }

    /// Exchanges a code for a session. The code is gone, even if it came too late.
    fn redeem(&mut self, code: &Digest, session: Digest, now: BootTime) -> Result<(), Refusal> {
        let link = self.links.remove(code).filter(|link| now.since(link.made_at) < LINK_LIFE_MS);
        let link = link.ok_or_else(|| {
            let message = "this link was used before, is older than five minutes, or never existed";
            Refusal::new(error_code::CONSOLE_LINK_INVALID, message)
        })?;
        self.begin(session, link.visitor, now);
        Ok(())
    }

    /// Records that a credential has answered a challenge. An answer to an earlier one is refused from then
    /// on.
    fn answer(
        &mut self,
        credential: &ByteString,
        challenge: SignInChallenge,
        now: BootTime,
    ) -> Result<(), Refusal> {
        self.answered.retain(|_, last| now.since(last.made_at) < LINK_LIFE_MS);
        if self.answered.get(credential).is_some_and(|last| *last >= challenge) {
            return Err(stale_challenge());
        }
        self.answered.insert(credential.clone(), challenge);
        Ok(())
    }

    fn begin(&mut self, session: Digest, visitor: Visitor, now: BootTime) {
        self.sessions.retain(|_, session| is_live(session, now));
        let own = self.sessions.iter().filter(|(_, other)| other.visitor == visitor);
        let own: Vec<(BootTime, Digest)> = own.map(|(key, other)| (other.seen_at, *key)).collect();
        if let Some(oldest) = oldest_above(own, SESSIONS_PER_VISITOR_MAX) {
            self.sessions.remove(&oldest);
        }
        self.sessions.insert(session, BrowserSession { visitor, began_at: now, seen_at: now });
    }

    /// Returns the visitor of a session, which counts as used now.
    fn visitor(&mut self, session: &Digest, now: BootTime) -> Option<Visitor> {
        let found = self.sessions.get_mut(session)?;
        if !is_live(found, now) {
            self.sessions.remove(session);
            return None;
        }
        found.seen_at = now;
        Some(found.visitor.clone())
    }
}

fn is_live(session: &BrowserSession, now: BootTime) -> bool {
    now.since(session.began_at) < SESSION_LIFE_MS && now.since(session.seen_at) < SESSION_IDLE_MS
}

/// Returns the oldest entry if one more would be too many.
fn oldest_above(mut entries: Vec<(BootTime, Digest)>, most: usize) -> Option<Digest> {
    entries.sort_by_key(|(time, digest)| (*time, digest.0));
    entries.first().filter(|_| entries.len() >= most).map(|(_, digest)| *digest)
}

fn stale_challenge() -> Refusal {
    let message = "this sign-in was used before or is older than five minutes; try again";
    Refusal::new(error_code::CONSOLE_LINK_INVALID, message)
}

/// Links and sessions of one console.
#[derive(Debug)]
pub struct SignIn {
    clock: Clock,
    challenge_key: ChallengeKey,
    state: Mutex<SignInState>,
}

impl SignIn {
    /// Creates a console without sessions. The clock decides when links and sessions expire.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        Self { clock, challenge_key: ChallengeKey(random_bytes()), state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, SignInState> {
        // Each change is one call of a map, so a panic elsewhere leaves no half of one.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the code of a new link, which signs one browser in as this visitor.
    #[must_use]
    pub fn create_link(&self, visitor: Visitor) -> String {
        let (text, digest) = secret();
        self.state().add_link(digest, visitor, self.clock.boot());
        text
    }

    /// Exchanges the code of a link for a session key.
    ///
    /// # Errors
    /// Fails with `console-link-invalid` if the code is unknown, used or old.
    pub(crate) fn redeem(&self, code: &str) -> Result<String, Refusal> {
        let (text, digest) = secret();
        self.state().redeem(&Digest::of(code.trim().as_bytes()), digest, self.clock.boot())?;
        Ok(text)
    }

    /// Returns a new challenge with which a passkey signs in, once. Nothing is kept of it.
    #[must_use]
    pub fn create_challenge(&self) -> Vec<u8> {
        let challenge = SignInChallenge { made_at: self.clock.boot(), nonce: random_bytes() };
        challenge.sealed(&self.challenge_key)
    }

    /// Reads a challenge that a passkey answered.
    ///
    /// # Errors
    /// Fails with `console-link-invalid` if it is none of ours, or old.
    pub(crate) fn read_challenge(&self, challenge: &[u8]) -> Result<SignInChallenge, Refusal> {
        let read = SignInChallenge::open(challenge, &self.challenge_key);
        let now = self.clock.boot();
        read.filter(|one| now.since(one.made_at) < LINK_LIFE_MS).ok_or_else(stale_challenge)
    }

    /// Begins a session of the member whose passkey answered this challenge, and returns its key. The answer
    /// was verified before.
    ///
    /// # Errors
    /// Fails with `console-link-invalid` if the passkey has answered this challenge or a later one.
    pub(crate) fn begin_by_passkey(
        &self,
        challenge: SignInChallenge,
        member: MemberId,
        credential: ByteString,
    ) -> Result<String, Refusal> {
        let ((text, digest), now) = (secret(), self.clock.boot());
        let mut state = self.state();
        state.answer(&credential, challenge, now)?;
        state.begin(digest, Visitor::Member { member, credential }, now);
        Ok(text)
    }

    /// Returns the visitor of a session key.
    pub(crate) fn visitor(&self, key: &str) -> Option<Visitor> {
        self.state().visitor(&Digest::of(key.as_bytes()), self.clock.boot())
    }

    /// Ends a session.
    pub(crate) fn end(&self, key: &str) {
        self.state().sessions.remove(&Digest::of(key.as_bytes()));
    }
}

fn secret() -> (String, Digest) {
    let text = hex::encode(random_bytes::<SECRET_BYTES>());
    let digest = Digest::of(text.as_bytes());
    (text, digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str) -> Visitor {
        Visitor::Member { member: name.parse().expect("a name"), credential: credential("phone") }
    }

    fn credential(name: &str) -> ByteString {
        ByteString(name.as_bytes().to_vec())
    }

    fn digest(name: &str) -> Digest {
        Digest::of(name.as_bytes())
    }

    fn code<T>(outcome: Result<T, Refusal>) -> Option<protocol::ErrorCode> {
        outcome.err().map(|refusal| refusal.code)
    }

    /// Attack: a link is read by another person later, in a history or a mail, and opened again.
    #[test]
    fn a_link_works_once_and_for_minutes() {
        let mut state = SignInState::default();
        state.add_link(digest("a"), member("alice"), BootTime(0));
        assert_eq!(state.redeem(&digest("a"), digest("s1"), BootTime(1)), Ok(()));
        let again = state.redeem(&digest("a"), digest("s2"), BootTime(2));
        assert_eq!(code(again), Some(error_code::CONSOLE_LINK_INVALID));
        assert_eq!(state.visitor(&digest("s1"), BootTime(3)), Some(member("alice")));
        assert_eq!(state.visitor(&digest("s2"), BootTime(3)), None);
        state.add_link(digest("b"), member("alice"), BootTime(10));
        let late = state.redeem(&digest("b"), digest("s3"), BootTime(10 + LINK_LIFE_MS));
        assert_eq!(code(late), Some(error_code::CONSOLE_LINK_INVALID));
        // Positive control: a moment earlier it opens.
        state.add_link(digest("c"), member("alice"), BootTime(10));
        assert_eq!(state.redeem(&digest("c"), digest("s4"), BootTime(9 + LINK_LIFE_MS)), Ok(()));
        assert_eq!(
            code(state.redeem(&digest("never"), digest("s5"), BootTime(11))),
            Some(error_code::CONSOLE_LINK_INVALID)
        );
    }

    #[test]
    fn a_session_ends_after_a_pause_and_after_a_day() {
        let begun = || {
            let mut state = SignInState::default();
            state.begin(digest("s"), member("alice"), BootTime(0));
            state
        };
        let mut state = begun();
        assert!(state.visitor(&digest("s"), BootTime(SESSION_IDLE_MS - 1)).is_some());
        assert_eq!(state.visitor(&digest("s"), BootTime(2 * SESSION_IDLE_MS - 1)), None, "a pause");
        assert!(state.sessions.is_empty(), "what ended is not kept");
        let mut state = begun();
        let steps = SESSION_LIFE_MS / (SESSION_IDLE_MS / 2);
        for step in 1..steps {
            assert!(state.visitor(&digest("s"), BootTime(step * SESSION_IDLE_MS / 2)).is_some(), "{step}");
        }
        assert_eq!(state.visitor(&digest("s"), BootTime(SESSION_LIFE_MS)), None, "used all day");
    }

    /// Attack: a visitor fills the tables, so that others are signed out or cannot sign in.
    #[test]
    fn the_oldest_of_a_visitors_own_links_and_sessions_gives_way() {
        let mut state = SignInState::default();
        state.add_link(digest("of bob"), member("bob"), BootTime(0));
        state.begin(digest("bob"), member("bob"), BootTime(0));
        for number in 0..100_u64 {
            state.add_link(digest(&format!("link {number}")), member("mallory"), BootTime(number));
            state.begin(digest(&format!("session {number}")), member("mallory"), BootTime(number));
        }
        assert_eq!(state.links.len(), 1 + LINKS_PER_VISITOR_MAX);
        assert_eq!(state.sessions.len(), 1 + SESSIONS_PER_VISITOR_MAX);
        assert!(state.visitor(&digest("bob"), BootTime(100)).is_some());
        assert_eq!(state.redeem(&digest("of bob"), digest("s"), BootTime(100)), Ok(()));
        assert!(state.visitor(&digest("session 99"), BootTime(100)).is_some());
        assert!(state.visitor(&digest("session 91"), BootTime(100)).is_none());
    }

    /// Attack: an assertion is replayed: the same one, one over an older challenge, and one that another
    /// console made.
    #[test]
    fn a_challenge_is_answered_once_and_by_no_older_one() {
        let challenge = |made_at: u64, nonce: u8| SignInChallenge {
            made_at: BootTime(made_at),
            nonce: [nonce; NONCE_BYTES],
        };
        let mut state = SignInState::default();
        let (phone, key) = (credential("phone"), credential("key"));
        assert_eq!(state.answer(&phone, challenge(5, 1), BootTime(6)), Ok(()), "positive control: once");
        for (case, again) in [("the same", challenge(5, 1)), ("an older one", challenge(4, 9))] {
            let refused = state.answer(&phone, again, BootTime(7));
            assert_eq!(code(refused), Some(error_code::CONSOLE_LINK_INVALID), "{case}");
        }
        // Positive control: a later one, and the same one by another passkey, are answers of their own.
        assert_eq!(state.answer(&phone, challenge(6, 0), BootTime(7)), Ok(()));
        assert_eq!(state.answer(&key, challenge(5, 1), BootTime(7)), Ok(()));
        assert_eq!(state.answered.len(), 2, "one for each passkey");
        assert_eq!(state.answer(&key, challenge(LINK_LIFE_MS, 0), BootTime(6 + LINK_LIFE_MS)), Ok(()));
        assert_eq!(state.answered.len(), 1, "what is too old to be answered is not kept");
    }

    /// Attack: an unauthenticated client asks for challenges without end, alters one, or keeps one for later.
    #[tokio::test(start_paused = true)]
    async fn challenges_cost_no_memory_and_are_those_of_this_console() {
        let sign_in = SignIn::new(Clock::of_runtime(BootTime(0), protocol::Millis(0)));
        let first = sign_in.create_challenge();
        let others: BTreeSet<Vec<u8>> = (0..5000).map(|_| sign_in.create_challenge()).collect();
        assert!(others.len() == 5000 && !others.contains(&first), "each is another");
        assert!(sign_in.state().answered.is_empty(), "none is kept");
        // Positive control: the first of them is good as long as it is fresh.
        assert!(sign_in.read_challenge(&first).is_ok());
        for at in 0..first.len() {
            let mut altered = first.clone();
            altered[at] ^= 1;
            let refused = sign_in.read_challenge(&altered);
            assert_eq!(code(refused), Some(error_code::CONSOLE_LINK_INVALID), "byte {at}");
        }
        let longer = [first.as_slice(), &[0]].concat();
        let elsewhere = SignIn::new(Clock::machine()).create_challenge();
        for foreign in [b"short".as_slice(), b"", &longer, &elsewhere] {
            assert!(sign_in.read_challenge(foreign).is_err(), "{foreign:?}");
        }
        tokio::time::advance(std::time::Duration::from_millis(LINK_LIFE_MS)).await;
        assert_eq!(code(sign_in.read_challenge(&first)), Some(error_code::CONSOLE_LINK_INVALID), "too old");
    }

    #[test]
    fn neither_codes_nor_session_keys_are_kept() {
        let sign_in = SignIn::new(Clock::machine());
        let link = sign_in.create_link(member("alice"));
        let key = sign_in.redeem(&format!(" {link}\n")).expect("a new link");
        assert_ne!(link, key);
        assert_eq!((link.len(), key.len()), (2 * SECRET_BYTES, 2 * SECRET_BYTES));
        assert_eq!(sign_in.visitor(&key), Some(member("alice")));
        let kept: Vec<Digest> = sign_in.state().sessions.keys().copied().collect();
        assert_eq!(kept, [Digest::of(key.as_bytes())]);
        assert_eq!(sign_in.visitor(&kept[0].to_string()), None, "a digest signs no browser in");
        sign_in.end(&key);
        assert_eq!(sign_in.visitor(&key), None);
    }

    #[test]
    fn a_visitor_is_named_and_only_a_member_votes() {
        let token = Visitor::Token {
            name: "ops".parse().expect("a name"),
            hash: digest("t"),
            scopes: BTreeSet::from([TokenScope::Read]),
        };
        assert_eq!((token.label().as_str(), token.member()), ("token ops", None));
        assert_eq!(member("bob").label(), "member bob");
        assert_eq!(member("bob").member().map(MemberId::as_str), Some("bob"));
        assert_eq!(Visitor::Owner { member: None }.label(), "reader without a key");
    }
}
