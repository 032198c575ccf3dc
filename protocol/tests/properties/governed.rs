//! Strategies for what members sign: genesis, proposals, ballots and certificates.

use crate::values::*;
use crate::workloads::{manifest, model};
use proptest::collection::{btree_map, btree_set, vec};
use proptest::option;
use proptest::prelude::*;
use protocol::governance::{
    AccessToken, ActionClass, Ballot, Bundle, Certificate, Change, Choice, ControlReplica, GatewayEndpoint,
    Genesis, HistoryHead, LogEvidence, Member, NodeAdmission, NodeRole, Policy, Proposal, Quorum,
    SignedBallot, SignedGenesis, StorageEndpoint, SubjectVersion, TokenScope,
};
use protocol::{MemberId, ReplicaId};

pub(crate) const CLASSES: [ActionClass; 2] = [ActionClass::Routine, ActionClass::Sensitive];
pub(crate) const CHOICES: [Choice; 2] = [Choice::Approve, Choice::Reject];
pub(crate) const ROLES: [NodeRole; 3] = [NodeRole::Worker, NodeRole::Storage, NodeRole::Gateway];
pub(crate) const SCOPES: [TokenScope; 3] = [TokenScope::Read, TokenScope::Propose, TokenScope::Submit];

pub(crate) fn member() -> impl Strategy<Value = Member> {
    (name(), member_keys()).prop_map(|(id, keys)| Member { id, keys })
}

/// Returns a rule of up to four thresholds around its members.
pub(crate) fn quorum() -> impl Strategy<Value = Quorum> {
    name::<MemberId>().prop_map(Quorum::Member).prop_recursive(4, 12, 3, |part| {
        (number32(), vec(part, 0..3)).prop_map(|(required, of)| Quorum::Threshold { required, of })
    })
}

pub(crate) fn policy() -> impl Strategy<Value = Policy> {
    btree_map(one_of(&CLASSES), quorum(), 0..3).prop_map(|quorums| Policy { quorums })
}

fn replica() -> impl Strategy<Value = ControlReplica> {
    let of = |(id, key, address, api)| ControlReplica { id: ReplicaId(id), key, address, api };
    (number(), key(), text(), text()).prop_map(of)
}

pub(crate) fn admission() -> BoxedStrategy<NodeAdmission> {
    let storage =
        (text(), btree_set(name(), 0..3)).prop_map(|(address, stores)| StorageEndpoint { address, stores });
    let gateway =
        (key(), text(), text()).prop_map(|(key, address, api)| GatewayEndpoint { key, address, api });
    let identity = (name(), node_id(), encryption(), set_of(&ROLES), text(), labels());
    (identity, option::of(storage), option::of(gateway))
        .prop_map(|(identity, storage, gateway)| {
            let (name, id, encryption, roles, region, labels) = identity;
            NodeAdmission { name, id, encryption, roles, region, labels, storage, gateway }
        })
        .boxed()
}

fn token() -> impl Strategy<Value = AccessToken> {
    let of = |(name, scopes, hash)| AccessToken { name, scopes, hash };
    (name(), set_of(&SCOPES), digest()).prop_map(of)
}

fn genesis() -> impl Strategy<Value = Genesis> {
    let people = (text(), millis(), vec(member(), 0..3), policy());
    let machines = (vec(replica(), 0..2), vec(admission(), 0..2), vec(token(), 0..2));
    (people, machines).prop_map(|((name, founded_at, members, policy), (control, nodes, tokens))| Genesis {
        name,
        founded_at,
        members,
        policy,
        control,
        nodes,
        tokens,
    })
}

pub(crate) fn signed_genesis() -> BoxedStrategy<SignedGenesis> {
    let of = |(genesis, signatures)| SignedGenesis { genesis, signatures };
    (genesis(), btree_map(name(), hybrid_signature(), 0..3)).prop_map(of).boxed()
}

pub(crate) fn change() -> BoxedStrategy<Change> {
    prop_oneof![
        manifest().prop_map(|manifest| Change::Deploy(Box::new(manifest))),
        (name(), number32()).prop_map(|(service, grace_seconds)| Change::Retire { service, grace_seconds }),
        admission().prop_map(|admission| Change::AdmitNode(Box::new(admission))),
        name().prop_map(|node| Change::RemoveNode { node }),
        (model(), number32()).prop_map(|(model, grace_seconds)| Change::ForgetModel { model, grace_seconds }),
        (vec(member(), 0..3), policy()).prop_map(|(members, policy)| Change::SetMembers { members, policy }),
    ]
    .boxed()
}

fn head() -> impl Strategy<Value = HistoryHead> {
    (number(), digest()).prop_map(|(size, root)| HistoryHead { size, root })
}

fn subject() -> impl Strategy<Value = SubjectVersion> {
    let of = |(subject, version, value)| SubjectVersion { subject, version, value };
    (text(), number(), option::of(digest())).prop_map(of)
}

pub(crate) fn proposal() -> BoxedStrategy<Proposal> {
    let basis = (circle(), epoch(), head(), vec(subject(), 0..3));
    let request = (change(), text(), millis(), millis(), digest());
    (basis, request)
        .prop_map(|((circle, epoch, history, subjects), request)| {
            let (change, reason, created_at, expires_at, nonce) = request;
            Proposal { circle, epoch, history, subjects, change, reason, created_at, expires_at, nonce }
        })
        .boxed()
}

pub(crate) fn ballot() -> impl Strategy<Value = Ballot> {
    (proposal_id(), digest(), number32(), one_of(&CHOICES), name(), epoch(), head(), millis()).prop_map(
        |(proposal, rendering, renderer_version, choice, member, epoch, history, issued_at)| Ballot {
            proposal,
            rendering,
            renderer_version,
            choice,
            member,
            epoch,
            history,
            issued_at,
        },
    )
}

pub(crate) fn signed_ballot() -> impl Strategy<Value = SignedBallot> {
    (ballot(), hybrid_signature()).prop_map(|(ballot, signature)| SignedBallot { ballot, signature })
}

pub(crate) fn certificate() -> BoxedStrategy<Certificate> {
    let of = |(proposal, ballots)| Certificate { proposal, ballots };
    (proposal(), vec(signed_ballot(), 0..3)).prop_map(of).boxed()
}

pub(crate) fn bundle() -> BoxedStrategy<Bundle> {
    let evidence = number().prop_map(|sequence| LogEvidence { sequence });
    (number32(), certificate(), option::of(evidence))
        .prop_map(|(version, certificate, log_evidence)| Bundle { version, certificate, log_evidence })
        .boxed()
}
