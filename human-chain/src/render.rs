//! Rendering of a proposal: the text that members read and that their ballots sign.
//!
//! [`render`] is a function of the proposal alone, so that every verifier of a ballot produces the same text.
//! The effect of the change on the running state is shown beside it ([`render_difference`]) and never signed.
//!
//! A version of the renderer never changes; a new text format needs a new version, because old ballots signed
//! the old text, and each ballot is judged by the renderer of its own version. The golden files under
//! `tests/golden` pin version 4, the first of which a release will read ballots.
//!
//! Each line begins with a margin mark. A terminal that breaks a long line gives its rest no mark, and no
//! value contains one, so no text of a proposer can pass for a field.

mod access;
mod difference;
mod escape;
mod fields;
mod genesis;
mod halts;
mod job;
mod prices;
mod projects;
mod words;

pub use difference::render_difference;
pub use escape::{show_duration, show_time};
pub use genesis::render_genesis;
pub use halts::{describe_halt, describe_scope};

use escape::{quoted, show_bytes};
use protocol::canonical::to_bytes;
use protocol::display::counted;
use protocol::governance::{Change, Member, NodeAdmission, Policy, Proposal, RENDERING_DOMAIN};
use protocol::manifest::{Manifest, ModelChoice, ServiceManifest, Task};
use protocol::passkey::PASSKEY_DOMAIN;
use protocol::{Digest, MemberId, Passkey};
use std::collections::BTreeMap;

/// Version of the text that [`render`] makes.
pub const RENDERER_VERSION: u32 = 5;

/// Mark at the left margin of each line. [`quoted`] escapes it.
const MARGIN: char = '|';

/// Width of the field name column; all values start behind it.
const FIELD_COLUMN: usize = 34;

/// Text form of a proposal, as its members read it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendering {
    /// Text: a sentence, then every field. Printable, with no character that could reorder, hide or imitate
    /// another.
    pub text: String,
    /// Digest of the text, which ballots sign.
    pub digest: Digest,
    /// First 48 bits of the digest as words, for comparing two screens by voice. This is only an aid:
    /// signatures cover the whole digest.
    pub words: [&'static str; 6],
}

/// Renders a proposal. No two different proposals have the same rendering: every field is in it, and so is
/// the digest of the whole.
#[must_use]
pub fn render(proposal: &Proposal) -> Rendering {
    let mut sentence = sentence(proposal);
    if proposal.passkeys_count {
        sentence.push_str(" Votes by passkey count here, beside one or more signed with a member's key.");
    }
    let text = text_of(&sentence, fields::of_proposal(proposal));
    let digest = Digest::of_domain(RENDERING_DOMAIN, text.as_bytes());
    Rendering { words: words::of(&digest), text, digest }
}

/// Returns six words for the first 48 bits of a digest, for comparing two screens by voice.
#[must_use]
pub fn words_of(digest: &Digest) -> [&'static str; 6] {
    words::of(digest)
}

/// Returns six words for a passkey, to compare the screens of a browser and a terminal. The label is no part
/// of them.
#[must_use]
pub fn passkey_words(passkey: &Passkey) -> [&'static str; 6] {
    words::of(&Digest::of_domain(PASSKEY_DOMAIN, &to_bytes(&(&passkey.credential, &passkey.key))))
}

/// Returns a sentence and the fields below it, one line each.
fn text_of(sentence: &str, fields: fields::FieldTexts) -> String {
    let mut text = format!("{MARGIN} {sentence}\n{MARGIN}\n");
    for (name, value) in fields {
        debug_assert!(!name.contains('\n') && !value.contains('\n'), "`{name}` takes one line");
        debug_assert!(!name.contains(MARGIN) && !value.contains(MARGIN), "`{name}` imitates no margin");
        text.push_str(&format!("{MARGIN} {name:<FIELD_COLUMN$} {value}\n"));
    }
    debug_assert!(text.lines().all(|line| line.starts_with(MARGIN)), "each line has its mark");
    text
}

/// Returns the digest of the proposal's rendering by each version of the renderer that this release has.
pub(crate) fn digests(proposal: &Proposal) -> BTreeMap<u32, Digest> {
    BTreeMap::from([(RENDERER_VERSION, render(proposal).digest)])
}

/// Returns one sentence that describes the change in plain words.
fn sentence(proposal: &Proposal) -> String {
    let exists = proposal.subjects.iter().any(|subject| subject.value.is_some());
    match &proposal.change {
        Change::Deploy(manifest) => deploy_sentence(manifest, exists),
        Change::Retire { service, grace_seconds } => format!(
            "End the service {service}: give running requests {} to finish, then stop it on every node.",
            show_duration(u64::from(*grace_seconds))
        ),
        Change::AdmitNode(node) => admit_sentence(node, exists),
        Change::RemoveNode { node } => {
            format!(
                "Remove the node {node}: what it runs moves elsewhere, and it is trusted with nothing more."
            )
        }
        Change::ForgetModel { model, grace_seconds } => format!(
            "Forget the {} permanently: its key and all its stored bytes are deleted {} after the last \
             approval, and no machine can read it again.",
            model_words(model),
            show_duration(u64::from(*grace_seconds))
        ),
        Change::Lift { halts } => halts::sentence(halts),
        Change::SetMembers { members, policy, .. } => members_sentence(members, policy),
        Change::SuspendMember { member, halts } => format!(
            "Suspend the member {member}: its ballots, open ones included, and its keys count for nothing \
             until the circle gives it new keys; {} of its own {} standing.",
            counted(halts.len() as u64, "halt"),
            if halts.len() == 1 { "is left" } else { "are left" }
        ),
        Change::SetPasskeys { member, passkeys } => passkeys_sentence(member, passkeys),
        Change::SetAccess(envelope) => access::sentence(envelope),
        Change::SetPrices(asked) => prices::sentence(asked),
        Change::SetProjects(tree) => projects::sentence(tree),
    }
}

fn passkeys_sentence(member: &MemberId, passkeys: &[Passkey]) -> String {
    let named =
        |passkey: &Passkey| format!("{} ({})", quoted(&passkey.label), passkey_words(passkey).join(" "));
    let named: Vec<String> = passkeys.iter().map(named).collect();
    debug_assert_eq!(named.len(), passkeys.len(), "each passkey shows its words");
    match named.as_slice() {
        [] => format!("Take all passkeys from {member}."),
        named => format!("Let {member} use these passkeys and no others: {}.", named.join(", ")),
    }
}

fn members_sentence(members: &[Member], policy: &Policy) -> String {
    let names: Vec<&str> = members.iter().map(|member| member.id.as_str()).collect();
    let veto = match policy.veto_seconds {
        0 => "takes effect at once".to_string(),
        seconds => format!("waits {} for the veto of any member", show_duration(u64::from(seconds))),
    };
    format!(
        "Replace who decides in this circle and by which rules: from then on its {} are {}, and the next \
         such change {veto}.",
        counted(names.len() as u64, "member"),
        names.join(", ")
    )
}

fn deploy_sentence(manifest: &Manifest, exists: bool) -> String {
    let verb = if exists { "Change" } else { "Start" };
    match manifest {
        Manifest::Service(service) => format!("{verb} the service {}", service_sentence(service)),
        Manifest::Job(job) => format!("{verb} the job {}", job::sentence(job)),
        Manifest::Edge(edge) => {
            format!(
                "{verb} the rollout {} of {} to the sites {}.",
                edge.name,
                model_words(&edge.model),
                quoted(&edge.sites)
            )
        }
    }
}

fn service_sentence(service: &ServiceManifest) -> String {
    let does = match service.task {
        Task::Embed => "turns text into embeddings",
        Task::Generate => "answers with generated text",
        Task::Rerank => "scores documents against queries",
    };
    let (min, max) = (u64::from(service.replicas.min), u64::from(service.replicas.max));
    let replicas = if min == max {
        format!("exactly {}", counted(max, "replica"))
    } else {
        format!("{min} to {}", counted(max, "replica"))
    };
    let resources = &service.resources;
    let gpu = match (resources.gpu_count, resources.gpu_share_percent) {
        (0, 0) => "no GPU".to_string(),
        (0, share) => format!("{share} % of a GPU"),
        (count, _) => counted(u64::from(count), "GPU"),
    };
    let whereabouts = match service.placement.regions.as_slice() {
        [] => "in any region".to_string(),
        regions => format!("in {} only", regions.iter().map(|r| quoted(r)).collect::<Vec<_>>().join(" or ")),
    };
    let until = match service.valid_until {
        None => "until it is retired".to_string(),
        Some(until) => format!("until {}", show_time(until)),
    };
    format!(
        "{}: {replicas} of {}, which {does}, each with {} millicores, {} of memory and {gpu}, \
         {whereabouts}, {until}. {}{}",
        service.name,
        model_words(&service.model),
        resources.cpu_millicores,
        show_bytes(resources.memory_bytes),
        if service.may_return() { RETURN_SENTENCE } else { "" },
        autonomy_sentence(service),
    )
}

/// Consequence of an approval that lets its service return to the approval before.
const RETURN_SENTENCE: &str =
    "If this fails, the service may return to the present value without a further vote. ";

/// Returns what a node does with the replicas that it holds while the control plane does not answer it.
fn autonomy_sentence(service: &ServiceManifest) -> String {
    let time = show_duration(service.autonomy_seconds);
    if service.exclusive {
        return format!(
            "No slot lives on two nodes: a node that gets no answer from the control plane ends its replicas \
             after {time}."
        );
    }
    format!(
        "A node that gets no answer from the control plane keeps its replicas for up to {time}; until then \
         a slot may live on each node that held it."
    )
}

/// Returns a model's name with its root in words, since a name alone could stand for anything.
fn model_words(model: &ModelChoice) -> String {
    format!("model {} ({})", model.name, words::of(&model.root.0).join(" "))
}

fn admit_sentence(node: &NodeAdmission, exists: bool) -> String {
    let roles: Vec<&str> = node.roles.iter().map(|role| fields::role(*role)).collect();
    let again = if exists { " again, in place of its earlier admission," } else { "" };
    format!(
        "Admit the node {}{again} in region {}, to serve as: {}.",
        node.name,
        quoted(&node.region),
        roles.join(", ")
    )
}
