//! Authentication of API requests by access tokens with scopes.
//!
//! Possession of a [`Reader`], a [`Proposer`] or a [`Submitter`] proves that the check has passed.

use super::Server;
use super::problem::Failure;
use axum::extract::FromRequestParts;
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use protocol::governance::TokenScope;
use protocol::{Digest, Refusal, TokenName, error_code};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Maximum length of a token that is checked, in bytes.
const TOKEN_BYTES_MAX: usize = 256;

/// Declares types that prove that a request carries a token with the scope that its route needs.
macro_rules! callers {
    ($($(#[$doc:meta])* $name:ident = $scope:expr;)*) => {
        $(
            $(#[$doc])*
            pub(crate) struct $name(pub(crate) TokenName);

            impl FromRequestParts<Arc<Server>> for $name {
                type Rejection = Failure;

                async fn from_request_parts(
                    parts: &mut Parts,
                    server: &Arc<Server>,
                ) -> Result<Self, Failure> {
                    authorize(parts, server, $scope).map(Self)
                }
            }

            impl From<$name> for TokenName {
                fn from(caller: $name) -> TokenName {
                    caller.0
                }
            }
        )*
    };
}

callers! {
    /// May read everything but secrets.
    Reader = TokenScope::Read;
    /// May make drafts, and deliver signed proposals, ballots, withdrawals, wraps, and complaints about
    /// wraps.
    Proposer = TokenScope::Propose;
    /// May scale within envelopes, and register models.
    Submitter = TokenScope::Submit;
}

/// A token that was shown and stands.
pub(crate) struct BearerToken {
    /// Person that holds the token.
    pub(crate) holder: TokenName,
    /// Scopes that the token has.
    pub(crate) scopes: BTreeSet<TokenScope>,
    /// Digest of its text, by which it is looked up again.
    pub(crate) hash: Digest,
}

/// A token that may read.
pub(crate) struct ReaderToken(pub(crate) BearerToken);

impl FromRequestParts<Arc<Server>> for ReaderToken {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, server: &Arc<Server>) -> Result<Self, Failure> {
        token_with(parts, server, TokenScope::Read).map(Self)
    }
}

fn authorize(parts: &Parts, server: &Server, scope: TokenScope) -> Result<TokenName, Failure> {
    token_with(parts, server, scope).map(|token| token.holder)
}

fn token_with(parts: &Parts, server: &Server, scope: TokenScope) -> Result<BearerToken, Failure> {
    let header = parts.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let text = header.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default();
    if text.is_empty() || text.len() > TOKEN_BYTES_MAX {
        return Err(Failure::new(error_code::TOKEN_UNKNOWN, "the request carries no access token")
            .at("header Authorization")
            .remedy("send `Authorization: Bearer TOKEN`"));
    }
    let token = server.standing_token(Digest::of(text.as_bytes())).map_err(|refusal| {
        // A replica that has just started has not applied the log yet; only the leader's rejection is final.
        if server.lock_leadership().is_none() {
            return server.not_leader();
        }
        Failure::from(refusal)
            .at("header Authorization")
            .remedy("a member issues another with `quorate token issue HOLDER`")
    })?;
    if !token.scopes.contains(&scope) {
        let message = format!("token `{}` lacks the scope `{scope}`", token.holder);
        return Err(Failure::new(error_code::TOKEN_SCOPE_MISSING, message));
    }
    Ok(token)
}

impl Server {
    /// Returns the access token with this digest that stands now, as this replica knows.
    ///
    /// # Errors
    /// Returns why there is none.
    pub(crate) fn standing_token(&self, hash: Digest) -> Result<BearerToken, Refusal> {
        let clocks = self.clocks.readings();
        self.cluster(|cluster| {
            let token = cluster.token(&hash, cluster.time(&clocks))?;
            let (holder, scopes) = (token.holder.clone(), token.scopes.clone());
            Ok(BearerToken { holder, scopes, hash })
        })
    }
}
