//! `Display` of the enums that people read: the name that JSON and manifests use, so that a listing shows a
//! value as a manifest must spell it.

use crate::agent::SlotState;
use crate::api::ProposalState;
use crate::governance::{ActionClass, Choice, NodeRole, TokenScope};
use crate::manifest::Isolation;
use std::fmt;

/// Returns a number with its noun, in the plural unless it is one: `1 halt`, `2 halts`.
#[must_use]
pub fn counted(count: u64, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

macro_rules! display {
    ($($kind:ident: $($variant:ident = $name:literal),+;)+) => {
        $(impl fmt::Display for $kind {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(match self { $(Self::$variant => $name),+ })
            }
        })+

        #[cfg(test)]
        mod tests {
            use super::*;

            #[test]
            fn a_number_of_one_has_a_noun_in_the_singular() {
                let shown = [0, 1, 2].map(|count| counted(count, "halt"));
                assert_eq!(shown, ["0 halts", "1 halt", "2 halts"]);
            }

            #[test]
            fn a_value_is_shown_as_it_is_serialized() {
                $($(
                    let json = serde_json::to_value($kind::$variant).unwrap();
                    assert_eq!(json, $kind::$variant.to_string());
                )+)+
            }
        }
    };
}

display! {
    ActionClass: Routine = "routine", Sensitive = "sensitive", Personal = "personal";
    Choice: Approve = "approve", Reject = "reject";
    Isolation: None = "none", SameUid = "same_uid", Full = "full";
    NodeRole: Worker = "worker", Storage = "storage", Gateway = "gateway";
    ProposalState: Open = "open", Approved = "approved", Rejected = "rejected", Expired = "expired",
        Stale = "stale", Waiting = "waiting", Draft = "draft", Withdrawn = "withdrawn", Void = "void";
    SlotState: Loading = "loading", Starting = "starting", Ready = "ready", Draining = "draining",
        Released = "released", Failed = "failed", Refused = "refused";
    TokenScope: Read = "read", Propose = "propose", Submit = "submit";
}
