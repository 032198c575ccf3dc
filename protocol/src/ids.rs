//! Newtypes for names, numbers and ids: one type per concept, so that the compiler rejects a mix-up.

use crate::digest::Digest;
use crate::keys::PublicKey;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Defines a validated name: 1 to 63 characters, `a-z 0-9 - . _`, beginning with a letter or digit. The rule
/// is narrow so that a name can be a file name, URL part or cgroup name without escaping. It also excludes
/// names that look alike through case or script.
macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
        #[serde(try_from = "String", into = "String")]
        #[schema(value_type = String, pattern = "^[a-z0-9][a-z0-9._-]{0,62}$")]
        pub struct $name(String);

        impl $name {
            /// Returns the name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = String;

            fn try_from(text: String) -> Result<Self, String> {
                check_name(&text).map_err(|reason| format!("name `{}` {reason}", short(&text)))?;
                debug_assert!(!text.starts_with('.') && !text.contains('/'), "a name is a file name");
                Ok(Self(text))
            }
        }

        impl std::str::FromStr for $name {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                Self::try_from(text.to_string())
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(&self.0)
            }
        }
    };
}

/// Returns the beginning of a text that is no name, escaped: the text may be of any length.
fn short(text: &str) -> String {
    let end = text.char_indices().map(|(at, _)| at).nth(crate::limits::NAME_BYTES_MAX + 1);
    let (shown, rest) = text.split_at(end.unwrap_or(text.len()));
    debug_assert!(shown.chars().count() <= crate::limits::NAME_BYTES_MAX + 1, "the text is cut");
    format!("{}{}", shown.escape_debug(), if rest.is_empty() { "" } else { "…" })
}

fn check_name(text: &str) -> Result<(), &'static str> {
    let ok = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    match text.as_bytes() {
        [] => Err("is empty"),
        bytes if bytes.len() > crate::limits::NAME_BYTES_MAX => Err("is longer than 63 characters"),
        [first, ..] if !ok(*first) => Err("must begin with a-z or 0-9"),
        bytes if bytes.iter().all(|c| ok(*c) || b"-._".contains(c)) => Ok(()),
        _ => Err("may contain only a-z, 0-9, `-`, `.` and `_`"),
    }
}

name!(
    /// Name of a service, job or rollout: the unit of deployment.
    ServiceName
);
name!(
    /// Id of a member of the circle.
    MemberId
);
name!(
    /// Name that people gave a node; its identity is [`NodeId`].
    NodeName
);
name!(
    /// Name of one store of a node: one of its disks.
    StoreName
);
name!(
    /// Name that people gave a model; its identity is [`ModelRoot`].
    ModelName
);
name!(
    /// Name of the person or application that holds an access token, an inference key or a submit key.
    TokenName
);
name!(
    /// Name of a parameter of a job.
    ParameterName
);
name!(
    /// Name of a project, to which jobs belong.
    ProjectName
);
name!(
    /// Name of the party that owns a node: a member, a company, a site.
    OwnerName
);
name!(
    /// Name of a checkpoint: that of the directory which a job renamed into `/checkpoint`.
    CheckpointName
);

/// Defines a newtype over an integer.
macro_rules! number {
    ($(#[$doc:meta])* $name:ident, $inner:ty) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[derive(Serialize, Deserialize, ToSchema)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number!(
    /// Index of one of the numbered slots `0..max` that an envelope grants.
    SlotIndex,
    u32
);
number!(
    /// Version of members and policy; rises by one with every change to them.
    Epoch,
    u64
);
number!(
    /// Number of a control replica in the Raft group.
    ReplicaId,
    u64
);
number!(
    /// Duration in milliseconds or, as a time, milliseconds since the Unix epoch.
    Millis,
    u64
);

/// Fencing token of a slot: the version of the service's certificate in force, and the number of the order
/// for the slot under it. The higher fence wins. No order, of any count, outlives the next certificate.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize, ToSchema,
)]
#[serde(deny_unknown_fields)]
pub struct Fence {
    /// Number of approved changes to the service when the order was made.
    pub version: u64,
    /// Number of the order for the slot under that version, from 1.
    pub count: u64,
}

impl Fence {
    /// Returns the fence with this version and count.
    #[must_use]
    pub const fn new(version: u64, count: u64) -> Self {
        Self { version, count }
    }

    /// Returns the fence of the next order under this version; none after the last count.
    #[must_use]
    pub fn next(self, version: u64) -> Option<Self> {
        let count = if version == self.version { self.count } else { 0 };
        let next = Self { version, count: count.checked_add(1)? };
        debug_assert!(version < self.version || next > self, "an order replaces those before it");
        Some(next)
    }
}

impl std::fmt::Display for Fence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.version, self.count)
    }
}

number!(
    /// Time of one machine's boot clock, which counts sleep and cannot be set (`CLOCK_BOOTTIME`), in
    /// milliseconds since that machine started. Leases use it.
    BootTime,
    u64
);

impl BootTime {
    /// Returns this time plus `milliseconds`, saturating.
    #[must_use]
    pub fn plus(self, milliseconds: u64) -> Self {
        let later = Self(self.0.saturating_add(milliseconds));
        debug_assert!(later >= self, "time does not wrap");
        later
    }

    /// Returns the milliseconds since `earlier`; zero if that is later.
    #[must_use]
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl Millis {
    /// Returns this time plus `milliseconds`, saturating.
    #[must_use]
    pub fn plus(self, milliseconds: u64) -> Self {
        let later = Self(self.0.saturating_add(milliseconds));
        debug_assert!(later >= self, "time does not wrap");
        later
    }
}

/// Defines an id over a digest or key.
macro_rules! wrapped {
    ($(#[$doc:meta])* $name:ident, $inner:ty) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl $name {
            /// Returns the first eight hexadecimal digits, for display.
            #[must_use]
            pub fn short(&self) -> String {
                self.0.short()
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.fmt(f)
            }
        }

        impl std::str::FromStr for $name {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                text.parse().map(Self)
            }
        }
    };
}

wrapped!(
    /// Id of a circle: the digest of its genesis.
    CircleId,
    Digest
);
wrapped!(
    /// Id of a proposal: the digest of its canonical bytes.
    ProposalId,
    Digest
);
wrapped!(
    /// Id of a halt: the digest of its canonical bytes.
    HaltId,
    Digest
);
wrapped!(
    /// Id of an access grant: the digest of its canonical bytes.
    GrantId,
    Digest
);
wrapped!(
    /// Id of a comment on a proposal: the digest of its canonical bytes.
    CommentId,
    Digest
);
wrapped!(
    /// Root of a model: the digest of its manifest, which names every segment.
    ModelRoot,
    Digest
);
wrapped!(
    /// Root of an artifact: the digest of its index, which names every file of its tree, its entry point,
    /// environment and working directory.
    ArtifactRoot,
    Digest
);
wrapped!(
    /// Id of a job: the digest of its submission's canonical bytes.
    JobId,
    Digest
);
wrapped!(
    /// Id of one start of a machine. Two values of [`BootTime`] compare only within one start.
    BootId,
    Digest
);
wrapped!(
    /// Identity of a node: its Ed25519 public key.
    NodeId,
    PublicKey
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_narrow() {
        for good in ["a", "minilm", "chat-v2", "7b", "llama-3.1_8b", &"x".repeat(63)] {
            assert!(good.parse::<ServiceName>().is_ok(), "{good}");
        }
        for bad in ["", "A", "-a", ".a", "a b", "a/b", "ä", "a\u{202e}b", "a\n", &"x".repeat(64)] {
            assert!(bad.parse::<ServiceName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_bad_name_in_json_is_refused_with_its_reason() {
        let error = serde_json::from_str::<NodeName>("\"No\"").expect_err("capital letter");
        assert!(error.to_string().contains("must begin with a-z or 0-9"), "{error}");
    }

    #[test]
    fn time_does_not_wrap() {
        assert_eq!(Millis(u64::MAX).plus(1), Millis(u64::MAX));
    }
}
