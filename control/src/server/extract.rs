//! Extractors of the API: each proves all that its handler needs, so that no handler can leave a check out.
//!
//! A handler takes [`LeaderRead`] or [`Submission`]. Both check the token's scope first, and then that this
//! replica leads: a read is never stale, and a write is proposed where it can be committed. A body is read
//! last, and its values are counted as it arrives.

use super::Server;
use super::auth::Reader;
use super::idempotency::Key;
use super::problem::Failure;
use axum::BoxError;
use axum::body::Body;
use axum::extract::{FromRequestParts, Request};
use axum::http::request::Parts;
use consensus::Role;
use futures::StreamExt as _;
use futures::stream::try_unfold;
use protocol::json::JsonCost;
use std::marker::PhantomData;
use std::sync::Arc;

/// A read by a token with the scope of `C`, at a leader that has applied every command acknowledged before.
pub(super) struct LeaderRead<C = Reader> {
    pub(super) server: Arc<Server>,
    caller: PhantomData<C>,
}

/// A write by a token with the scope of `C`, at a leader, under the client's idempotency key if it sent one.
pub(super) struct Submission<C> {
    pub(super) caller: C,
    pub(super) key: Key,
    pub(super) server: Arc<Server>,
}

impl<C> FromRequestParts<Arc<Server>> for LeaderRead<C>
where
    C: FromRequestParts<Arc<Server>, Rejection = Failure>,
{
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, server: &Arc<Server>) -> Result<Self, Failure> {
        C::from_request_parts(parts, server).await?;
        require_leading(server).await?;
        Ok(Self { server: server.clone(), caller: PhantomData })
    }
}

impl<C> FromRequestParts<Arc<Server>> for Submission<C>
where
    C: FromRequestParts<Arc<Server>, Rejection = Failure> + Send,
{
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, server: &Arc<Server>) -> Result<Self, Failure> {
        let caller = C::from_request_parts(parts, server).await?;
        let key = Key::from_request_parts(parts, server).await?;
        require_leading(server).await?;
        Ok(Self { caller, key, server: server.clone() })
    }
}

/// Returns once this replica leads and has applied every command acknowledged before the request.
///
/// # Errors
/// `not-leader` with the leader's address if another replica leads.
pub(super) async fn require_leading(server: &Server) -> Result<(), Failure> {
    if server.lock_leadership().is_none() {
        return Err(server.not_leader());
    }
    let mut status = server.handle.watch_status();
    let led = status.borrow_and_update().role == Role::Leader;
    tokio::select! {
        biased;
        confirmed = server.read_barrier() => confirmed?,
        // A leader that is deposed during the barrier reports it immediately, so that no client waits for the
        // barrier.
        _ = status.wait_for(|status| status.role != Role::Leader), if led => return Err(server.not_leader()),
    }
    Ok(())
}

/// Error for a body that is a list: every body of the API is an object, and a manifest is judged by its own
/// reader. A list of the fields in their order would be a second form of it, which the API does not document.
#[derive(Debug, thiserror::Error)]
#[error("the body is a list; accepted: a JSON object")]
struct ListBody;

/// Returns whether a document that begins so is a list; none as long as it has only spaces.
fn is_list(chunk: &[u8]) -> Option<bool> {
    chunk.iter().find(|byte| !byte.is_ascii_whitespace()).map(|byte| *byte == b'[')
}

/// Ends the body of a request in an error if it is a list. A body that no handler reads is not looked at.
pub(super) async fn refuse_lists(request: Request) -> Request {
    request.map(|body| {
        let begin = (body.into_data_stream(), None);
        let passed = try_unfold(begin, |(mut body, mut list)| async move {
            let Some(chunk) = body.next().await else { return Ok::<_, BoxError>(None) };
            // The error itself, without a further layer: the rejection of a body too long is found in it.
            let chunk = chunk.map_err(axum::Error::into_inner)?;
            list = list.or_else(|| is_list(&chunk));
            if list == Some(true) { Err(ListBody.into()) } else { Ok(Some((chunk, (body, list)))) }
        });
        Body::from_stream(passed)
    })
}

/// Ends the body of a request in an error if its JSON has too many values for its bytes, so that its memory
/// is bounded before a value is read. A body that no handler reads is not counted.
pub(super) async fn count_values(request: Request) -> Request {
    request.map(|body| {
        let begin = (body.into_data_stream(), JsonCost::default());
        let counted = try_unfold(begin, |(mut body, mut cost)| async move {
            let Some(chunk) = body.next().await else {
                cost.check()?;
                return Ok::<_, BoxError>(None);
            };
            // The error itself, without a further layer: the rejection of a body too long is found in it.
            let chunk = chunk.map_err(axum::Error::into_inner)?;
            cost.add(&chunk)?;
            Ok(Some((chunk, (body, cost))))
        });
        Body::from_stream(counted)
    })
}
