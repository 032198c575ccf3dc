//! Halts: any replica takes and lists them, whether it leads or not.

use super::ApiResult;
use crate::server::Server;
use crate::server::auth::{Proposer, Reader};
use crate::server::paging::{PageParameters, PageRequest, PagedList};
use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Query, State};
use protocol::HaltId;
use protocol::api::Page;
use protocol::halt::{HaltReceipt, SignedHalt};
use std::sync::Arc;

/// A page of the halts that stand at this replica, by id.
///
/// Every replica answers from its own disk. A client asks all of them and verifies each signature.
#[utoipa::path(get, path = "/v1/halts", params(PageParameters),
    responses((status = 200, body = Page<SignedHalt>)), tag = "halts")]
pub(super) async fn halts(
    _: Reader,
    State(server): State<Arc<Server>>,
    query: Result<Query<PageParameters>, QueryRejection>,
) -> ApiResult<Page<SignedHalt>> {
    let page: PageRequest<HaltId> = PageRequest::of(PagedList::Halts, query)?;
    let (items, next_page_token) = page.take(server.halts.listed(page.after).into_iter());
    Ok(Json(Page { items, next_page_token }))
}

/// Takes a member's signed halt, without a leader and without a quorum.
///
/// The halt is on this replica's disk when the answer comes, and on its way to every node and replica. A
/// client sends it to all replicas. The same halt may be sent again.
#[utoipa::path(post, path = "/v1/halts", request_body = SignedHalt,
    responses((status = 200, body = HaltReceipt)), tag = "halts")]
pub(super) async fn take_halt(
    _: Proposer,
    State(server): State<Arc<Server>>,
    body: Result<Json<SignedHalt>, JsonRejection>,
) -> ApiResult<HaltReceipt> {
    let Json(signed) = body?;
    Ok(Json(server.take_halt(signed).await?))
}
