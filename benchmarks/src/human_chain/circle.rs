//! Circle of a benchmark: members with real keys, and a deployment that just as many approve as must.

use anyhow::Context;
use human_chain::{
    CircleState, MemberSecret, certify, propose, read_certificate, sign_genesis, verify, vote,
};
use protocol::canonical::to_bytes;
use protocol::governance::{ActionClass, Change, Choice, ControlReplica, Genesis, Member, Policy, Quorum};
use protocol::manifest::Manifest;
use protocol::{Digest, MemberId, Millis, PublicKey, ReplicaId};

/// Time of all events: 2026-11-21 12:41:50 UTC.
const NOW: Millis = Millis(1_795_264_910_000);
/// Lifetime of the proposal in milliseconds.
const LIFETIME_MS: u64 = 3_600_000;
const MANIFEST: &str = "kind = 'service'\nname = 'embed'\ntask = 'embed'\n\
    model = { name = 'minilm', root = 'ROOT' }\nreplicas = { min = 2, max = 8 }\n\
    resources = { cpu_millicores = 2000, memory = '2 GiB' }\n";

/// Circle, and the bytes of a certificate that it has not applied yet.
pub(super) struct SignedCircle {
    state: CircleState,
    pub(super) certificate: Vec<u8>,
}

impl SignedCircle {
    /// Founds a circle of this many members, and lets `required` of them approve a deployment.
    pub(super) fn new(required: u32, members: u32) -> anyhow::Result<Self> {
        let people: Vec<(MemberId, MemberSecret)> = (0..members).map(person).collect::<Result<_, _>>()?;
        let founders: Vec<(MemberId, &MemberSecret)> =
            people.iter().map(|(id, secret)| (id.clone(), secret)).collect();
        let signed = sign_genesis(genesis(required, &people), &founders);
        let state = CircleState::found(&signed, None).context("found the circle")?;
        let manifest = Manifest::from_toml(&MANIFEST.replace("ROOT", &"1".repeat(64)))?;
        let change = Change::Deploy(Box::new(manifest));
        let (reason, ends) = ("for the benchmark".to_string(), NOW.plus(LIFETIME_MS));
        let proposal = propose(&state, change, reason, NOW, ends, Digest::of(b"nonce"))?;
        let head = state.head();
        let approve = |(id, secret): &(MemberId, MemberSecret)| {
            vote(secret, id.clone(), head, &proposal, Choice::Approve, NOW)
        };
        let ballots: Vec<_> = people.iter().take(required as usize).map(approve).collect();
        let certificate = to_bytes(&certify(&state, &proposal, &ballots)?);
        Ok(Self { state, certificate })
    }

    /// Reads the certificate from its bytes and verifies it, as an agent does.
    pub(super) fn verify(&self) -> anyhow::Result<()> {
        let certificate = read_certificate(&self.certificate)?;
        verify(&self.state, &certificate, NOW)?;
        Ok(())
    }
}

fn person(number: u32) -> anyhow::Result<(MemberId, MemberSecret)> {
    let id = format!("member-{number:02}").parse().map_err(anyhow::Error::msg)?;
    Ok((id, MemberSecret::generate(&[number as u8 + 1; 64])))
}

fn genesis(required: u32, people: &[(MemberId, MemberSecret)]) -> Genesis {
    let of = people.iter().map(|(id, _)| Quorum::Member(id.clone())).collect();
    let rule = Quorum::Threshold { required, of };
    let quorums = [ActionClass::Routine, ActionClass::Sensitive].map(|class| (class, rule.clone()));
    Genesis {
        name: "benchmark".into(),
        founded_at: NOW,
        members: people.iter().map(|(id, secret)| Member { id: id.clone(), keys: secret.public() }).collect(),
        policy: Policy { quorums: quorums.into(), passkeys: None, veto_seconds: 0, proposer_counts: true },
        control: vec![ControlReplica {
            id: ReplicaId(1),
            key: PublicKey([9; 32]),
            address: "127.0.0.1:7001".into(),
            api: "http://127.0.0.1:7000".into(),
        }],
        nodes: vec![],
        access: protocol::access::AccessEnvelope::standard(people.iter().map(|(id, _)| id.clone())),
    }
}
