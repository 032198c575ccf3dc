//! Findings about access that ends soon: each token and key whose holder has no successor for it, with the
//! command that issues one. An expiry that comes unannounced is an outage of an application.

use super::finding;
use crate::clock::{ClusterTime, show_span};
use crate::view::ClusterView;
use protocol::access::{AccessGrant, GRANTS_PER_HOLDER_MAX, GrantedAccess};
use protocol::api::Finding;
use protocol::display::counted;
use protocol::{Millis, ServiceName, TokenName};
use std::collections::BTreeMap;

/// Time before its end from which access is named, in milliseconds: a week, in which people of every circle
/// look at its status once.
const NOTICE_MS: u64 = 7 * 24 * 3_600_000;
/// Most holders that are named to people, each in a finding of its own.
const HOLDERS_SHOWN: usize = 16;

/// Returns the access tokens and inference keys that expire within a week, those that end first in front. Of
/// two grants to one holder the later one counts.
pub(super) fn expiring_findings(view: ClusterView) -> Vec<Finding> {
    let Some(state) = view.cluster.circle_state() else { return Vec::new() };
    let now = view.cluster_time();
    let mut held: BTreeMap<(&str, &TokenName), Vec<&AccessGrant>> = BTreeMap::new();
    for (_, signed) in view.cluster.access().standing(state, now.0) {
        let grant = &signed.grant;
        held.entry((grant.access.kind(), &grant.holder)).or_default().push(grant);
    }
    let mut ending: Vec<(Millis, Finding)> =
        held.into_values().filter_map(|grants| expiring(now, grants)).collect();
    ending.sort_by_key(|(end, _)| *end);
    let more = ending.len().saturating_sub(HOLDERS_SHOWN);
    let mut findings: Vec<Finding> = ending.into_iter().take(HOLDERS_SHOWN).map(|(_, found)| found).collect();
    if more > 0 {
        let verb = if more == 1 { "expires" } else { "expire" };
        let message = format!("{} {verb} within a week", counted(more as u64, "more grant"));
        findings.push(finding(message, "quorate token list; quorate key list".into()));
    }
    debug_assert!(findings.len() <= HOLDERS_SHOWN + 1, "the list is bounded");
    findings
}

/// Returns the finding about the grants of one kind to one holder, with their end; none if that is far.
fn expiring(now: ClusterTime, mut grants: Vec<&AccessGrant>) -> Option<(Millis, Finding)> {
    grants.sort_by_key(|grant| grant.expires_at);
    let (first, last) = (*grants.first()?, *grants.last()?);
    debug_assert!(first.expires_at <= last.expires_at, "they are sorted by their end");
    let left_ms = now.ms_until(ClusterTime(last.expires_at));
    if left_ms > NOTICE_MS {
        return None;
    }
    let (kind, holder) = (last.access.kind(), &last.holder);
    let message = format!("the {kind} of {holder} expires in {}", show_span(left_ms));
    // A holder with two grants gets no third: the one that ends first makes room.
    let next = match grants.len() < GRANTS_PER_HOLDER_MAX {
        true => issue_command(last),
        false => format!("quorate {kind} revoke {holder} --grant {}", first.id().short()),
    };
    Some((last.expires_at, finding(message, next)))
}

/// Returns the command that issues a successor with the same access.
fn issue_command(grant: &AccessGrant) -> String {
    let holder = &grant.holder;
    match &grant.access {
        GrantedAccess::Token { scopes } => {
            let scopes: Vec<String> = scopes.iter().map(ToString::to_string).collect();
            format!("quorate token issue {holder} --scope {}", scopes.join(" "))
        }
        GrantedAccess::Key { services, requests_per_minute } => {
            let services: Vec<&str> = services.iter().flatten().map(ServiceName::as_str).collect();
            let services = if services.is_empty() {
                String::new()
            } else {
                format!(" --service {}", services.join(" "))
            };
            let rate = requests_per_minute.map(|rate| format!(" --requests-per-minute {rate}"));
            format!("quorate key issue {holder}{services}{}", rate.unwrap_or_default())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::access::ACCESS_VERSION;
    use protocol::governance::TokenScope;
    use protocol::{CircleId, Digest, PublicKey};

    fn grant(access: GrantedAccess, expires_at: u64) -> AccessGrant {
        AccessGrant {
            version: ACCESS_VERSION,
            circle: CircleId(Digest([0; 32])),
            envelope: Digest([0; 32]),
            issuer: "alice".parse().unwrap(),
            signer: PublicKey([0; 32]),
            holder: "app".parse().unwrap(),
            access,
            secret: Digest([0; 32]),
            issued_at: Millis(0),
            expires_at: Millis(expires_at),
        }
    }

    #[test]
    fn the_command_issues_the_same_access() {
        let token = |scopes: &[TokenScope]| GrantedAccess::Token { scopes: scopes.iter().copied().collect() };
        let key = |services: &[&str], requests_per_minute| GrantedAccess::Key {
            services: (!services.is_empty()).then(|| services.iter().map(|s| s.parse().unwrap()).collect()),
            requests_per_minute,
        };
        for (access, expected) in [
            (token(&[TokenScope::Read, TokenScope::Propose]), "quorate token issue app --scope read propose"),
            (key(&[], None), "quorate key issue app"),
            (key(&["chat", "embed"], None), "quorate key issue app --service chat embed"),
            (key(&["chat"], Some(60)), "quorate key issue app --service chat --requests-per-minute 60"),
        ] {
            assert_eq!(issue_command(&grant(access, 1)), expected);
        }
    }

    #[test]
    fn the_later_of_two_grants_says_when_access_ends() {
        const DAY_MS: u64 = 24 * 3_600_000;
        let key = |days: u64| {
            grant(GrantedAccess::Key { services: None, requests_per_minute: None }, days * DAY_MS)
        };
        let found = |days: &[u64]| {
            let grants: Vec<AccessGrant> = days.iter().map(|days| key(*days)).collect();
            let now = ClusterTime(Millis(DAY_MS));
            expiring(now, grants.iter().collect()).map(|(_, found)| (found.message, found.next))
        };
        let told =
            |left: &str, next: &str| Some((format!("the key of app expires in {left}"), next.to_string()));
        assert_eq!(found(&[]), None);
        assert_eq!(found(&[9]), None, "eight days are left");
        assert_eq!(found(&[8]), told("7 days", "quorate key issue app"));
        assert_eq!(found(&[3, 40]), None, "it has a successor");
        let revoke = format!("quorate key revoke app --grant {}", key(3).id().short());
        assert_eq!(found(&[5, 3]), told("4 days", &revoke), "both end, and a third has no room");
    }
}
