//! Strategies for what members sign: genesis, proposals, ballots and certificates.

use crate::usage::prices_to;
use crate::values::*;
use crate::workloads::{manifest, model};
use proptest::collection::{btree_map, btree_set, vec};
use proptest::option;
use proptest::prelude::*;
use protocol::access::AccessEnvelope;
use protocol::comment::{Comment, CommentSignature, SignedComment};
use protocol::governance::{
    ActionClass, Ballot, BallotSignature, Bundle, Certificate, Change, Choice, ControlReplica,
    GatewayEndpoint, Genesis, HistoryHead, LogEvidence, Member, NodeAdmission, NodeRole, Policy, Proposal,
    Quorum, SignedBallot, SignedGenesis, StorageEndpoint, SubjectVersion, TokenScope,
};
use protocol::halt::{Halt, HaltScope, HaltSignature, SignedHalt};
use protocol::passkey::P256Coordinate;
use protocol::project::{Project, ProjectQuota, ProjectTree};
use protocol::{MemberId, Passkey, PasskeyAssertion, PasskeyKey, PasskeyPolicy, ReplicaId};

pub(crate) const CLASSES: [ActionClass; 3] =
    [ActionClass::Routine, ActionClass::Sensitive, ActionClass::Personal];
pub(crate) const CHOICES: [Choice; 2] = [Choice::Approve, Choice::Reject];
pub(crate) const ROLES: [NodeRole; 3] = [NodeRole::Worker, NodeRole::Storage, NodeRole::Gateway];
pub(crate) const SCOPES: [TokenScope; 3] = [TokenScope::Read, TokenScope::Propose, TokenScope::Submit];

pub(crate) fn member() -> BoxedStrategy<Member> {
    (name(), member_keys()).prop_map(|(id, keys)| Member { id, keys }).boxed()
}

/// Returns a rule of up to four thresholds around its members.
pub(crate) fn quorum() -> BoxedStrategy<Quorum> {
    name::<MemberId>()
        .prop_map(Quorum::Member)
        .prop_recursive(4, 12, 3, |part| {
            (number32(), vec(part, 0..3)).prop_map(|(required, of)| Quorum::Threshold { required, of })
        })
        .boxed()
}

pub(crate) fn policy() -> BoxedStrategy<Policy> {
    let passkeys = (text(), btree_set(text(), 0..3), any::<bool>())
        .prop_map(|(rp_id, origins, routine)| PasskeyPolicy { rp_id, origins, routine });
    let of = |(quorums, passkeys, veto_seconds, proposer_counts)| Policy {
        quorums,
        passkeys,
        veto_seconds,
        proposer_counts,
    };
    (btree_map(one_of(&CLASSES), quorum(), 0..3), option::of(passkeys), number32(), any::<bool>())
        .prop_map(of)
        .boxed()
}

fn replica() -> BoxedStrategy<ControlReplica> {
    let of = |(id, key, address, api)| ControlReplica { id: ReplicaId(id), key, address, api };
    (number(), key(), text(), text()).prop_map(of).boxed()
}

pub(crate) fn admission() -> BoxedStrategy<NodeAdmission> {
    let storage =
        (text(), btree_set(name(), 0..3)).prop_map(|(address, stores)| StorageEndpoint { address, stores });
    let gateway =
        (key(), text(), text()).prop_map(|(key, address, api)| GatewayEndpoint { key, address, api });
    let identity = (name(), node_id(), encryption(), set_of(&ROLES), text(), labels(), option::of(name()));
    (identity, option::of(storage), option::of(gateway), signature())
        .prop_map(|(identity, storage, gateway, proof)| {
            let (name, id, encryption, roles, region, labels, owner) = identity;
            NodeAdmission { name, id, encryption, roles, region, labels, owner, storage, gateway, proof }
        })
        .boxed()
}

fn envelope() -> BoxedStrategy<AccessEnvelope> {
    let grantors = (btree_set(name(), 0..3), set_of(&SCOPES), option::of(btree_set(name(), 0..3)));
    (grantors, number32(), number32(), number32(), any::<bool>())
        .prop_map(|((grantors, scopes, services), tokens_max, keys_max, seconds_max, ends_earlier)| {
            AccessEnvelope { grantors, scopes, tokens_max, services, keys_max, seconds_max, ends_earlier }
        })
        .boxed()
}

fn genesis() -> BoxedStrategy<Genesis> {
    let people = (text(), millis(), vec(member(), 0..3), policy());
    let machines = (vec(replica(), 0..2), vec(admission(), 0..2), envelope());
    (people, machines)
        .prop_map(|((name, founded_at, members, policy), (control, nodes, access))| Genesis {
            name,
            founded_at,
            members,
            policy,
            control,
            nodes,
            access,
        })
        .boxed()
}

pub(crate) fn signed_genesis() -> BoxedStrategy<SignedGenesis> {
    let of = |(genesis, signatures)| SignedGenesis { genesis, signatures };
    (genesis(), btree_map(name(), hybrid_signature(), 0..3)).prop_map(of).boxed()
}

fn coordinate() -> BoxedStrategy<P256Coordinate> {
    any::<[u8; 32]>().prop_map(P256Coordinate).boxed()
}

pub(crate) fn passkey() -> BoxedStrategy<Passkey> {
    let key = prop_oneof![
        (coordinate(), coordinate()).prop_map(|(x, y)| PasskeyKey::Es256 { x, y }),
        key().prop_map(PasskeyKey::EdDsa),
    ];
    (bytes(), key, text()).prop_map(|(credential, key, label)| Passkey { credential, key, label }).boxed()
}

fn assertion() -> BoxedStrategy<PasskeyAssertion> {
    (bytes(), bytes(), bytes(), bytes())
        .prop_map(|(credential, authenticator_data, client_data, signature)| PasskeyAssertion {
            credential,
            authenticator_data,
            client_data,
            signature,
        })
        .boxed()
}

fn project_quota() -> BoxedStrategy<ProjectQuota> {
    (number(), number(), number32())
        .prop_map(|(cpu_millicores, memory_bytes, gpus)| ProjectQuota { cpu_millicores, memory_bytes, gpus })
        .boxed()
}

fn projects() -> BoxedStrategy<ProjectTree> {
    let project = (name(), option::of(name()), number32(), project_quota(), option::of(project_quota()))
        .prop_map(|(name, parent, weight, quota, borrow)| Project { name, parent, weight, quota, borrow });
    (number(), number32(), vec(project, 0..3))
        .prop_map(|(half_life_seconds, own_weight, projects)| ProjectTree {
            half_life_seconds,
            own_weight,
            projects,
        })
        .boxed()
}

pub(crate) fn change() -> BoxedStrategy<Change> {
    prop_oneof![
        manifest().prop_map(|manifest| Change::Deploy(Box::new(manifest))),
        (name(), number32()).prop_map(|(service, grace_seconds)| Change::Retire { service, grace_seconds }),
        admission().prop_map(|admission| Change::AdmitNode(Box::new(admission))),
        name().prop_map(|node| Change::RemoveNode { node }),
        (model(), number32()).prop_map(|(model, grace_seconds)| Change::ForgetModel { model, grace_seconds }),
        vec(halt(), 0..3).prop_map(|halts| Change::Lift { halts }),
        (vec(member(), 0..3), policy(), btree_map(name(), hybrid_signature(), 0..2))
            .prop_map(|(members, policy, proofs)| Change::SetMembers { members, policy, proofs }),
        (name(), btree_set(digest(), 0..3))
            .prop_map(|(member, halts)| Change::SuspendMember { member, halts }),
        (name(), vec(passkey(), 0..3))
            .prop_map(|(member, passkeys)| Change::SetPasskeys { member, passkeys }),
        envelope().prop_map(|envelope| Change::SetAccess(Box::new(envelope))),
        projects().prop_map(|tree| Change::SetProjects(Box::new(tree))),
        prices_to(u64::MAX).prop_map(Change::SetPrices),
    ]
    .boxed()
}

pub(crate) fn halt() -> BoxedStrategy<Halt> {
    let scope = prop_oneof![
        name().prop_map(HaltScope::Service),
        name().prop_map(HaltScope::Node),
        text().prop_map(HaltScope::Region),
        Just(HaltScope::Circle),
    ];
    let of = |(circle, member, signer, scope, reason, issued_at, nonce)| Halt {
        circle,
        member,
        signer,
        scope,
        reason,
        issued_at,
        nonce,
    };
    (circle(), name(), key(), scope, text(), millis(), digest()).prop_map(of).boxed()
}

pub(crate) fn signed_halt() -> BoxedStrategy<SignedHalt> {
    let signature = prop_oneof![
        hybrid_signature().prop_map(HaltSignature::Hybrid),
        assertion().prop_map(HaltSignature::Passkey),
    ];
    (halt(), signature).prop_map(|(halt, signature)| SignedHalt { halt, signature }).boxed()
}

pub(crate) fn signed_comment() -> BoxedStrategy<SignedComment> {
    let signature = prop_oneof![
        hybrid_signature().prop_map(CommentSignature::Hybrid),
        assertion().prop_map(CommentSignature::Passkey),
    ];
    let answers = option::of(digest().prop_map(protocol::CommentId));
    let of = |(proposal, member, answers, text, issued_at)| Comment {
        proposal: protocol::ProposalId(proposal),
        member,
        answers,
        text,
        issued_at,
    };
    let comment = (digest(), name(), answers, text(), millis()).prop_map(of);
    (comment, signature).prop_map(|(comment, signature)| SignedComment { comment, signature }).boxed()
}

pub(crate) fn head() -> BoxedStrategy<HistoryHead> {
    (number(), digest()).prop_map(|(size, root)| HistoryHead { size, root }).boxed()
}

fn subject() -> BoxedStrategy<SubjectVersion> {
    let of = |(subject, version, value)| SubjectVersion { subject, version, value };
    (text(), number(), option::of(digest())).prop_map(of).boxed()
}

pub(crate) fn proposal() -> BoxedStrategy<Proposal> {
    let basis = (circle(), epoch(), head(), vec(subject(), 0..3));
    let request = (change(), any::<bool>(), text(), millis(), millis(), digest());
    (basis, request)
        .prop_map(|((circle, epoch, history, subjects), request)| {
            let (change, passkeys_count, reason, created_at, expires_at, nonce) = request;
            Proposal {
                circle,
                epoch,
                history,
                subjects,
                change,
                passkeys_count,
                reason,
                created_at,
                expires_at,
                nonce,
            }
        })
        .boxed()
}

pub(crate) fn ballot() -> BoxedStrategy<Ballot> {
    let vote = (one_of(&CHOICES), name(), text());
    (proposal_id(), digest(), number32(), vote, epoch(), head(), millis())
        .prop_map(
            |(proposal, rendering, renderer_version, (choice, member, reason), epoch, history, issued_at)| {
                Ballot {
                    proposal,
                    rendering,
                    renderer_version,
                    choice,
                    member,
                    epoch,
                    history,
                    issued_at,
                    reason,
                }
            },
        )
        .boxed()
}

pub(crate) fn signed_ballot() -> BoxedStrategy<SignedBallot> {
    let signature = prop_oneof![
        hybrid_signature().prop_map(BallotSignature::Hybrid),
        assertion().prop_map(BallotSignature::Passkey),
    ];
    (ballot(), signature).prop_map(|(ballot, signature)| SignedBallot { ballot, signature }).boxed()
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
