//! `quorate member passkeys` and `quorate member passkey`: a member's passkeys, which only that member's key
//! file adds and drops.
//!
//! A browser makes the passkey, and shows its six words; the member types the first two here. So no page can
//! put another key under the member's signature.

use super::Environment;
use super::circle::read_json;
use super::output::table;
use super::sharing::{member_key, share_after};
use super::words::WordsArguments;
use crate::print;
use crate::session::{PROPOSAL_LIFETIME_MS, Session};
use anyhow::Result;
use clap::Subcommand;
use human_chain::{CircleState, passkey_words, read_registration, registration_challenge};
use protocol::api::Page;
use protocol::governance::Change;
use protocol::{MemberId, Passkey, PasskeyKey, PasskeyRegistration, Refusal, error_code};
use serde::Serialize;
use std::path::PathBuf;

#[derive(Debug, Subcommand)]
pub(crate) enum PasskeyCommand {
    /// Add a passkey that a browser made, after comparing its words with those that the browser shows
    #[command(after_help = "\
Examples:
  quorate member passkey add --from passkey.json --key alice.key
  quorate member passkey add --from passkey.json --words 'badge pelican'    for scripts")]
    Add {
        /// File that the console's page offers after it made a passkey
        #[arg(long, value_name = "FILE")]
        from: PathBuf,
        /// Name of the passkey [default: that in the file]
        #[arg(long)]
        label: Option<String>,
        #[command(flatten)]
        signing: SigningArguments,
    },
    /// Drop a passkey; its open ballots no longer count
    #[command(after_help = "Example:\n  quorate member passkey drop phone --key alice.key")]
    Drop {
        /// Name of the passkey
        label: String,
        #[command(flatten)]
        signing: SigningArguments,
    },
}

#[derive(Debug, clap::Args)]
pub(crate) struct SigningArguments {
    /// Key file of the member [default: the context's]
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    #[command(flatten)]
    words: WordsArguments,
}

/// Passkey of a member, as listed.
#[derive(Debug, Serialize)]
struct ListedPasskey {
    member: MemberId,
    label: String,
    algorithm: &'static str,
    words: [&'static str; 6],
}

pub(crate) async fn run(command: PasskeyCommand, environment: &Environment) -> Result<()> {
    match command {
        PasskeyCommand::Add { from, label, signing } => {
            let mut registration: PasskeyRegistration = read_json(&from)?;
            registration.label = label.unwrap_or(registration.label);
            decide(signing, environment, |circle, member| added(circle, member, &registration)).await
        }
        PasskeyCommand::Drop { label, signing } => {
            decide(signing, environment, |circle, member| dropped(circle.passkeys(member), &label)).await
        }
    }
}

pub(crate) async fn list(member: Option<MemberId>, environment: &Environment) -> Result<()> {
    let session = Session::open(&environment.context()?).await?;
    let members = session.circle.members().map(|member| &member.id);
    let chosen = members.filter(|id| member.as_ref().is_none_or(|member| member == *id));
    let entries = chosen.flat_map(|id| session.circle.passkeys(id).iter().map(|passkey| entry(id, passkey)));
    environment.output().print(&Page::whole(entries.collect::<Vec<_>>()), |page| {
        let row = |entry: &ListedPasskey| {
            let ListedPasskey { member, label, algorithm, words } = entry;
            vec![member.to_string(), label.clone(), (*algorithm).to_string(), words.join(" ")]
        };
        table(&["member", "passkey", "algorithm", "words"], page.items.iter().map(row).collect())
    });
    Ok(())
}

fn entry(member: &MemberId, passkey: &Passkey) -> ListedPasskey {
    let algorithm = match passkey.key {
        PasskeyKey::Es256 { .. } => "ES256",
        PasskeyKey::EdDsa(_) => "EdDSA",
    };
    let (label, words) = (passkey.label.clone(), passkey_words(passkey));
    ListedPasskey { member: member.clone(), label, algorithm, words }
}

/// Passkeys of a member after a change, and the one that the change is about.
struct PasskeyEdit {
    passkeys: Vec<Passkey>,
    subject: Passkey,
    verb: &'static str,
}

/// Returns a member's passkeys with that of a registration, which its browser must have made for this member.
fn added(
    circle: &CircleState,
    member: &MemberId,
    registration: &PasskeyRegistration,
) -> Result<PasskeyEdit, Refusal> {
    let policy = circle.policy().passkeys.as_ref().ok_or_else(|| {
        let message = "the circle's policy has no passkeys; propose a policy that names a domain";
        Refusal::new(error_code::GOVERNANCE_INVALID, message)
    })?;
    let challenge = registration_challenge(circle.id(), member);
    let subject = read_registration(registration, &challenge.0, policy)?;
    let passkeys = [circle.passkeys(member), std::slice::from_ref(&subject)].concat();
    Ok(PasskeyEdit { passkeys, subject, verb: "added" })
}

/// Returns passkeys without the one of this name.
fn dropped(present: &[Passkey], label: &str) -> Result<PasskeyEdit, Refusal> {
    let (dropped, passkeys): (Vec<Passkey>, Vec<Passkey>) =
        present.iter().cloned().partition(|passkey| passkey.label == label);
    let subject = dropped.into_iter().next().ok_or_else(|| {
        let message = format!("you have no passkey `{label}`; `quorate member passkeys` lists yours");
        Refusal::new(error_code::PASSKEY_UNKNOWN, message)
    })?;
    Ok(PasskeyEdit { passkeys, subject, verb: "dropped" })
}

/// Proposes and approves a change of the member's passkeys, which needs no other vote.
async fn decide(
    signing: SigningArguments,
    environment: &Environment,
    edit: impl FnOnce(&CircleState, &MemberId) -> Result<PasskeyEdit, Refusal>,
) -> Result<()> {
    let context = environment.context()?;
    let member = member_key(&context, signing.key)?;
    let session = Session::open(&context).await?;
    let PasskeyEdit { passkeys, subject, verb } = edit(&session.circle, &member.member)?;
    let change = Change::SetPasskeys { member: member.member.clone(), passkeys };
    let reason = format!("passkey {verb}: {}", subject.label);
    let proposal = session.draft(change, reason, PROPOSAL_LIFETIME_MS)?;
    let words = passkey_words(&subject);
    let (text, label) = (human_chain::render(&proposal).text, crate::terminal::line(&subject.label));
    print::err(format_args!("{text}\npasskey `{label}`\nwords: {}\n", words.join(" ")));
    signing.words.confirm(&format!("sign as {}", member.member), &words)?;
    let reviewed = session.submit_as(proposal, &member).await?;
    environment.output().print(&reviewed, |reviewed| {
        format!("passkey `{label}` of {} {verb}\n{}", member.member, reviewed.state_text())
    });
    share_after(&session, &member).await;
    Ok(())
}

/// Returns a registration of an EdDSA passkey as Chromium makes it at `http://localhost:8080`.
#[cfg(test)]
pub(super) fn sample(circle: &CircleState, member: &MemberId, key: u8) -> PasskeyRegistration {
    /// SHA-256 of `localhost`.
    const RELYING_PARTY: &str = "49960de5880e8c687434170f6476605b8fe4aeb9a28632c7995cf3ba831d9763";
    let challenge = registration_challenge(circle.id(), member).0;
    let letters: Vec<char> = ('A'..='Z').chain('a'..='z').chain('0'..='9').chain(['-', '_']).collect();
    let bits: Vec<u8> =
        challenge.iter().flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1)).collect();
    let value =
        |part: &[u8]| (0..6).fold(0, |sum, at| sum * 2 + usize::from(part.get(at).copied().unwrap_or(0)));
    let challenge: String = bits.chunks(6).map(|part| letters[value(part)]).collect();
    let client_data = format!(
        "{{\"type\":\"webauthn.create\",\"challenge\":\"{challenge}\",\"origin\":\"http://localhost:8080\"}}"
    );
    let public = human_chain::MemberSecret::generate(&[100 + key; 64]).public().ed25519;
    let relying_party = hex::decode(RELYING_PARTY).expect("hexadecimal");
    let cose = hex::decode("a4010103272006215820").expect("hexadecimal");
    let head = [&relying_party[..], &[0x45, 0, 0, 0, 0], &[0; 16], &[0, 16], &[key; 16]].concat();
    PasskeyRegistration {
        authenticator_data: protocol::keys::ByteString([&head[..], &cose, &public.0].concat()),
        client_data: protocol::keys::ByteString(client_data.into_bytes()),
        label: "phone".into(),
    }
}

/// Returns the policy that goes with [`sample`].
#[cfg(test)]
pub(super) fn sample_policy() -> protocol::PasskeyPolicy {
    let origins = ["http://localhost:8080".to_string()].into();
    protocol::PasskeyPolicy { rp_id: "localhost".into(), origins, routine: true }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::SampleCircle;
    use protocol::governance::Policy;

    fn circle() -> SampleCircle {
        let mut circle = SampleCircle::founded();
        let policy = Policy { passkeys: Some(sample_policy()), ..circle.state.policy().clone() };
        let members = circle.state.members().cloned().collect();
        circle.decide(Change::SetMembers { members, policy, proofs: [].into() }, "passkeys");
        circle
    }

    #[test]
    fn a_registration_is_added_for_the_member_that_made_it() {
        let circle = circle();
        let [alice, bob] = ["alice", "bob"].map(|name| name.parse::<MemberId>().expect("a name"));
        let registration = sample(&circle.state, &alice, 1);
        let edit = added(&circle.state, &alice, &registration).expect("sound");
        assert_eq!((edit.passkeys.as_slice(), edit.verb), (std::slice::from_ref(&edit.subject), "added"));
        let code = |outcome: Result<PasskeyEdit, Refusal>| outcome.err().map(|refusal| refusal.code);
        assert_eq!(code(added(&circle.state, &bob, &registration)), Some(error_code::PASSKEY_CHALLENGE));
        let before = SampleCircle::founded();
        let outcome = added(&before.state, &alice, &sample(&before.state, &alice, 1));
        assert_eq!(code(outcome), Some(error_code::GOVERNANCE_INVALID), "no policy");
        let mut elsewhere = registration;
        elsewhere.authenticator_data.0[0] ^= 1;
        assert_eq!(code(added(&circle.state, &alice, &elsewhere)), Some(error_code::PASSKEY_ORIGIN));
        elsewhere.authenticator_data.0[0] ^= 1;
        elsewhere.authenticator_data.0[32] = 0x41;
        assert_eq!(code(added(&circle.state, &alice, &elsewhere)), Some(error_code::PASSKEY_UNVERIFIED));
        elsewhere.authenticator_data.0.truncate(60);
        elsewhere.authenticator_data.0[32] = 0x45;
        assert_eq!(code(added(&circle.state, &alice, &elsewhere)), Some(error_code::PASSKEY_INVALID));
    }

    #[test]
    fn a_passkey_is_dropped_by_its_name() {
        let circle = circle();
        let alice: MemberId = "alice".parse().expect("a name");
        let named = |key: u8, label: &str| {
            let subject =
                added(&circle.state, &alice, &sample(&circle.state, &alice, key)).expect("sound").subject;
            Passkey { label: label.into(), ..subject }
        };
        let both = [named(1, "phone"), named(2, "laptop")];
        let edit = dropped(&both, "phone").expect("it is there");
        assert_eq!((edit.passkeys.as_slice(), &edit.subject, edit.verb), (&both[1..], &both[0], "dropped"));
        let refused = dropped(&both, "tablet").err().expect("none of this name");
        assert_eq!(refused.code, error_code::PASSKEY_UNKNOWN);
        let listed = entry(&alice, &both[0]);
        assert_eq!((listed.algorithm, listed.words), ("EdDSA", passkey_words(&both[0])));
    }
}
