//! Attacks on assertions and registrations of passkeys, each beside a verifier that leaves one guard out.

use crate::authenticator::{
    Authenticator, Ceremony, ORIGIN, PRESENT, RP_ID, VERIFIED, base64url, client_data, passkey_policy, sha256,
};
use crate::support::{check, name};
use human_chain::{check_assertion, passkey_words, read_registration, registration_challenge};
use protocol::keys::ByteString;
use protocol::limits::{PASSKEY_AUTHENTICATOR_DATA_BYTES_MAX, PASSKEY_CLIENT_DATA_BYTES_MAX};
use protocol::{CircleId, Digest, Passkey, PasskeyAssertion, PasskeyKey, PasskeyPolicy, PublicKey};
use serde_json::Value;

const CHALLENGE: [u8; 32] = [7; 32];

/// Guards of an assertion. The signature is one that no attack below breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Guard {
    Ceremony,
    Challenge,
    Origin,
    CrossOrigin,
    RelyingParty,
    Presence,
    Verification,
    Backup,
    Counter,
    Trailing,
    Duplicates,
    Size,
    Credential,
}

/// Verifies an assertion as the standard has it, except for one guard. It is written from the standard, and
/// shares no code with the product.
fn lax(
    policy: &PasskeyPolicy,
    passkey: &Passkey,
    assertion: &PasskeyAssertion,
    last_counter: u32,
    left_out: Guard,
) -> bool {
    let data = &assertion.authenticator_data.0;
    let text = std::str::from_utf8(&assertion.client_data.0).expect("text");
    let client: Value = serde_json::from_str(text).expect("an object");
    let counter = u32::from_be_bytes(data[33..37].try_into().expect("four bytes"));
    let (flags, challenge) = (data[32], base64url(&CHALLENGE));
    let members = |name: &str| text.matches(&format!("\"{name}\":")).count();
    let holds = [
        (Guard::Ceremony, client["type"] == "webauthn.get"),
        (Guard::Challenge, client["challenge"] == challenge),
        (Guard::Origin, client["origin"].as_str().is_some_and(|origin| policy.origins.contains(origin))),
        (Guard::CrossOrigin, client["crossOrigin"] != true && client.get("topOrigin").is_none()),
        (Guard::RelyingParty, data[..32] == sha256(policy.rp_id.as_bytes())),
        (Guard::Presence, flags & 1 != 0),
        (Guard::Verification, flags & 4 != 0),
        (Guard::Backup, flags & 0x18 != 0x10),
        (Guard::Counter, (counter, last_counter) == (0, 0) || counter > last_counter),
        (Guard::Trailing, data.len() == 37 || flags & 0x80 != 0 && flags & 0x40 == 0),
        (Guard::Duplicates, ["type", "challenge", "origin"].iter().all(|name| members(name) == 1)),
        (Guard::Size, text.len() <= PASSKEY_CLIENT_DATA_BYTES_MAX && data.len() <= 512),
        (Guard::Credential, assertion.credential == passkey.credential),
    ];
    holds.iter().all(|(guard, holds)| *holds || *guard == left_out) && signature_holds(passkey, assertion)
}

fn signature_holds(passkey: &Passkey, assertion: &PasskeyAssertion) -> bool {
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, ED25519, UnparsedPublicKey};
    let message = [&assertion.authenticator_data.0[..], &sha256(&assertion.client_data.0)].concat();
    let signature = &assertion.signature.0;
    match &passkey.key {
        PasskeyKey::Es256 { x, y } => {
            let point = [&[4][..], &x.0, &y.0].concat();
            UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, point).verify(&message, signature).is_ok()
        }
        PasskeyKey::EdDsa(key) => UnparsedPublicKey::new(&ED25519, key.0).verify(&message, signature).is_ok(),
    }
}

/// Lets both kinds of authenticators sign a ceremony with one part made wrong, after a use with counter 5.
/// The product refuses with this code; the verifier without this guard accepts.
fn refused(guard: Guard, expected: &str, alter: impl Fn(&mut Ceremony)) {
    for authenticator in [Authenticator::es256("phone"), Authenticator::eddsa("key")] {
        let (policy, passkey) = (passkey_policy(), authenticator.passkey("phone"));
        let sound = Ceremony::of(&CHALLENGE, 6);
        let mut altered = sound.clone();
        alter(&mut altered);
        let attack = authenticator.answer(&altered);
        let case = format!("{guard:?}");
        check(&case, check_assertion(&policy, &passkey, &CHALLENGE, &attack, 5), expected);
        assert!(lax(&policy, &passkey, &attack, 5, guard), "{case}: it succeeds without its guard");
        let other = if guard == Guard::Size { Guard::Backup } else { Guard::Size };
        assert!(!lax(&policy, &passkey, &attack, 5, other), "{case}: only that guard stops it");
        let honest = authenticator.answer(&sound);
        assert_eq!(check_assertion(&policy, &passkey, &CHALLENGE, &honest, 5), Ok(6), "{case}: untouched");
    }
}

fn said(ceremony: &mut Ceremony, from: &str, to: &str) {
    assert!(ceremony.client_data.contains(from), "{} has no {from}", ceremony.client_data);
    ceremony.client_data = ceremony.client_data.replace(from, to);
}

/// Attacks: a page of another site asks for the passkey.
#[test]
fn an_assertion_for_another_site_is_refused() {
    for origin in [
        "https://example.org",
        "https://console.example.org:444",
        "http://console.example.org",
        "https://evil.example",
        "https://console.example.org.evil.example",
        "https://CONSOLE.example.org",
        "https://console.example.org/",
        "null",
        "",
    ] {
        refused(Guard::Origin, "passkey-origin: for the origin", |c| said(c, ORIGIN, origin));
    }
    for rp_id in ["console.example.org", "org", "evil.example", ""] {
        refused(Guard::RelyingParty, "passkey-origin: another relying party", |c| c.rp_id = rp_id.into());
    }
    let framed = "\"crossOrigin\":true";
    refused(Guard::CrossOrigin, "passkey-origin: within another site", |c| {
        said(c, "\"crossOrigin\":false", framed)
    });
    refused(Guard::CrossOrigin, "passkey-origin: within another site", |c| {
        said(c, "\"crossOrigin\":false", "\"crossOrigin\":false,\"topOrigin\":\"https://evil.example\"");
    });
}

/// Attacks: the authenticator did not verify its user; a machine used it with no person present.
#[test]
fn an_assertion_without_its_user_is_refused() {
    refused(Guard::Verification, "passkey-unverified: did not verify its user", |c| c.flags = PRESENT);
    refused(Guard::Presence, "passkey-unverified: no person was present", |c| c.flags = VERIFIED);
    refused(Guard::Backup, "passkey-invalid: backed up, but cannot be", |c| c.flags |= 0x10);
}

/// Attacks: an answer to another challenge, or of another ceremony, under the same key.
#[test]
fn an_assertion_over_something_else_is_refused() {
    let mine = base64url(&CHALLENGE);
    for other in [&[8; 32][..], &[7; 31], &[7; 33], b""] {
        refused(Guard::Challenge, "passkey-challenge", |c| said(c, &mine, &base64url(other)));
    }
    refused(Guard::Challenge, "passkey-challenge", |c| said(c, &mine, &format!("{mine}=")));
    refused(Guard::Ceremony, "passkey-invalid: another ceremony", |c| {
        said(c, "webauthn.get", "webauthn.create")
    });
    refused(Guard::Ceremony, "passkey-invalid: another ceremony", |c| said(c, "webauthn.get", "payment.get"));
}

/// Attack: a copy of an authenticator, whose counter is behind that of the original.
#[test]
fn a_counter_that_goes_back_is_refused() {
    for counter in [5, 4, 1, 0] {
        refused(Guard::Counter, "passkey-counter", |c| c.counter = counter);
    }
    let authenticator = Authenticator::es256("phone");
    let (policy, passkey) = (passkey_policy(), authenticator.passkey("phone"));
    for (last, counter, expected) in
        [(0, 0, Some(0)), (0, 1, Some(1)), (5, u32::MAX, Some(u32::MAX)), (u32::MAX, 0, None)]
    {
        let answer = authenticator.answer(&Ceremony::of(&CHALLENGE, counter));
        let found = check_assertion(&policy, &passkey, &CHALLENGE, &answer, last);
        assert_eq!(found.ok(), expected, "{counter} after {last}");
    }
}

/// Attacks: bytes that one reader sees and another does not.
#[test]
fn an_assertion_has_one_reading() {
    refused(Guard::Trailing, "passkey-invalid: behind its end", |c| c.rest = vec![0]);
    refused(Guard::Trailing, "passkey-invalid: a new credential", |c| {
        c.flags |= 0x40;
        c.rest = Authenticator::es256("another").attested();
    });
    let twice = format!("\"origin\":\"https://evil.example\",\"origin\":\"{ORIGIN}\"");
    refused(Guard::Duplicates, "passkey-invalid: twice", |c| {
        said(c, &format!("\"origin\":\"{ORIGIN}\""), &twice)
    });
    refused(Guard::Size, "passkey-invalid: accepted: at most 1536", |c| {
        let padding =
            format!("\"crossOrigin\":false,\"pad\":\"{}\"", "x".repeat(PASSKEY_CLIENT_DATA_BYTES_MAX));
        said(c, "\"crossOrigin\":false", &padding);
    });
    refused(Guard::Size, "passkey-invalid: longer than an assertion", |c| {
        c.flags |= 0x80;
        c.rest = vec![0xa1; PASSKEY_AUTHENTICATOR_DATA_BYTES_MAX];
    });
}

#[test]
fn extensions_and_new_members_of_client_data_are_allowed() {
    for authenticator in [Authenticator::es256("phone"), Authenticator::eddsa("key")] {
        let (policy, passkey) = (passkey_policy(), authenticator.passkey("phone"));
        let mut ceremony = Ceremony::of(&CHALLENGE, 1);
        ceremony.flags |= 0x80 | 0x18;
        ceremony.rest = vec![0xa1, 0x61, b'x', 0xf5];
        let new = "\"crossOrigin\":false,\"other_keys_can_be_added_here\":\"do not compare\"";
        said(&mut ceremony, "\"crossOrigin\":false", new);
        let answer = authenticator.answer(&ceremony);
        assert_eq!(check_assertion(&policy, &passkey, &CHALLENGE, &answer, 0), Ok(1));
        ceremony.rest.clear();
        let announced = authenticator.answer(&ceremony);
        check("announced", check_assertion(&policy, &passkey, &CHALLENGE, &announced, 0), "passkey-invalid");
    }
}

/// Attack: one bit of an honest answer is flipped. Every bit is tried.
#[test]
fn every_bit_of_an_assertion_counts() {
    for authenticator in [Authenticator::es256("phone"), Authenticator::eddsa("key")] {
        let (policy, passkey) = (passkey_policy(), authenticator.passkey("phone"));
        let sound = authenticator.answer(&Ceremony::of(&CHALLENGE, 9));
        let accepts =
            |answer: &PasskeyAssertion| check_assertion(&policy, &passkey, &CHALLENGE, answer, 0).is_ok();
        assert!(accepts(&sound), "untouched");
        let parts: [fn(&mut PasskeyAssertion) -> &mut ByteString; 4] = [
            |a| &mut a.credential,
            |a| &mut a.authenticator_data,
            |a| &mut a.client_data,
            |a| &mut a.signature,
        ];
        for (at, part) in parts.into_iter().enumerate() {
            let length = part(&mut sound.clone()).0.len();
            for bit in 0..length * 8 {
                let mut altered = sound.clone();
                part(&mut altered).0[bit / 8] ^= 1 << (bit % 8);
                assert!(!accepts(&altered), "part {at}, bit {bit}");
            }
            for (case, alter) in [
                ("a byte more", (|bytes| bytes.push(0)) as fn(&mut Vec<u8>)),
                ("a byte less", |bytes| bytes.truncate(bytes.len() - 1)),
                ("nothing", Vec::clear),
            ] {
                let mut altered = sound.clone();
                alter(&mut part(&mut altered).0);
                assert!(!accepts(&altered), "part {at}, {case}");
            }
        }
    }
}

/// Attack: the answer of one passkey is handed in under another credential of the same policy.
#[test]
fn an_assertion_is_of_its_own_passkey() {
    let (mine, other) = (Authenticator::es256("phone"), Authenticator::es256("laptop"));
    let (policy, passkey) = (passkey_policy(), mine.passkey("phone"));
    let foreign = other.answer(&Ceremony::of(&CHALLENGE, 1));
    let mut relabelled = foreign.clone();
    relabelled.credential = passkey.credential.clone();
    check(
        "another's",
        check_assertion(&policy, &passkey, &CHALLENGE, &foreign, 0),
        "passkey-invalid: another credential",
    );
    check("relabelled", check_assertion(&policy, &passkey, &CHALLENGE, &relabelled, 0), "signature-invalid");
    let theirs = other.passkey("laptop");
    assert_eq!(check_assertion(&policy, &theirs, &CHALLENGE, &foreign, 0), Ok(1), "it is a sound one");
    let mut unlike = mine.answer(&Ceremony::of(&CHALLENGE, 1));
    unlike.credential = theirs.credential;
    assert!(lax(&policy, &passkey, &unlike, 0, Guard::Credential), "the attack succeeds without its guard");
    check("under its name", check_assertion(&policy, &passkey, &CHALLENGE, &unlike, 0), "passkey-invalid");
}

fn registered(case: &str, expected: &str, alter: impl Fn(&mut Ceremony)) {
    for authenticator in [Authenticator::es256("phone"), Authenticator::eddsa("key")] {
        let registration = authenticator.registration(&CHALLENGE, &alter);
        let outcome = read_registration(&registration, &CHALLENGE, &passkey_policy());
        if let Ok(passkey) = &outcome {
            assert_eq!(*passkey, authenticator.passkey("phone"), "{case}");
        }
        check(case, outcome, expected);
    }
}

#[test]
fn a_registration_gives_the_passkey_that_was_made_here_and_no_other() {
    registered("sound", "approved", |_| {});
    registered("with extensions", "approved", |c| {
        c.flags |= 0x80;
        c.rest.extend([0xa1, 0x61, b'x', 0xf5]);
    });
    registered("a backed-up one", "approved", |c| c.flags |= 0x18);
    registered("an assertion", "passkey-invalid: another ceremony", |c| {
        said(c, "webauthn.create", "webauthn.get")
    });
    registered("another member's", "passkey-challenge", |c| {
        c.client_data = client_data("webauthn.create", &[8; 32], ORIGIN);
    });
    registered("another site's", "passkey-origin: the origin", |c| said(c, ORIGIN, "https://evil.example"));
    registered("another relying party's", "passkey-origin: relying party", |c| {
        c.rp_id = "evil.example".into()
    });
    registered("unverified", "passkey-unverified", |c| c.flags = 0x41);
    registered("no credential", "passkey-invalid: no new credential", |c| c.flags = PRESENT | VERIFIED);
    registered("trailing bytes", "passkey-invalid: behind its end", |c| c.rest.push(0));
    registered("cut short", "passkey-invalid: neither ES256 nor EdDSA", |c| {
        c.rest.truncate(c.rest.len() - 1)
    });
    registered("cut in the id", "passkey-invalid: ends too early", |c| c.rest.truncate(30));
    registered("nothing", "passkey-invalid: ends too early", |c| c.rest.clear());
    registered("another algorithm", "passkey-invalid: neither ES256", |c| c.rest[16 + 2 + 20 + 4] ^= 1);
    registered("no id", "governance-invalid: of 0 bytes; accepted: 1 to 1023", |c| {
        c.rest.drain(18..38);
        c.rest[17] = 0;
    });
    registered("huge", "passkey-invalid: longer than a registration", |c| {
        c.flags |= 0x80;
        c.rest.extend([0xa1; 4096]);
    });
}

#[test]
fn a_key_that_is_none_is_refused() {
    let refused = |authenticator: &Authenticator, at: usize, bytes: &[u8]| {
        let registration =
            authenticator.registration(&CHALLENGE, |c| c.rest[at..at + 32].copy_from_slice(bytes));
        let outcome = read_registration(&registration, &CHALLENGE, &passkey_policy());
        check("no key", outcome, "governance-invalid: has a key that is none");
    };
    let es256 = Authenticator::es256("phone");
    // Off the curve; beyond the field; the point at infinity, as some write it.
    for bytes in [[1; 32], [0xff; 32], [0; 32]] {
        refused(&es256, 38 + 10, &bytes);
    }
    let mut weak = [0; 32];
    weak[0] = 1;
    for bytes in [weak, [2; 32]] {
        refused(&Authenticator::eddsa("key"), 38 + 10, &bytes);
    }
}

#[test]
fn challenges_and_words_name_what_they_are_for() {
    let circle = |byte| CircleId(Digest([byte; 32]));
    let challenges = [(1, "alice"), (2, "alice"), (1, "bob")]
        .map(|(byte, who)| registration_challenge(circle(byte), &name(who)));
    assert!(
        challenges[0] != challenges[1] && challenges[0] != challenges[2],
        "of another circle, of another member"
    );
    let words = passkey_words(&Authenticator::es256("phone").passkey("phone"));
    assert_eq!(
        words,
        passkey_words(&Authenticator::es256("phone").passkey("renamed")),
        "the label is no part"
    );
    assert_ne!(words, passkey_words(&Authenticator::es256("laptop").passkey("phone")));
    let swapped =
        Passkey { key: PasskeyKey::EdDsa(PublicKey([1; 32])), ..Authenticator::es256("phone").passkey("p") };
    assert_ne!(words, passkey_words(&swapped));
}

/// Assertion with a fixed signature, so that what is accepted now is accepted in later releases.
#[test]
fn a_recorded_assertion_is_still_accepted() {
    let authenticator = Authenticator::eddsa("recorded");
    let answer = authenticator.answer(&Ceremony::of(&CHALLENGE, 3));
    let text = serde_json::to_string_pretty(&answer).expect("JSON");
    crate::renderings::check_golden("assertion.json", &(text + "\n"));
    let passkey = authenticator.passkey("recorded");
    assert_eq!(check_assertion(&passkey_policy(), &passkey, &CHALLENGE, &answer, 2), Ok(3));
    assert_eq!(passkey_policy().rp_id, RP_ID);
}
