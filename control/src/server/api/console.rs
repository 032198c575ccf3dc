//! Links that sign a browser in at this replica's console.

use crate::server::auth::ReaderToken;
use crate::server::{Server, console_pages};
use axum::Json;
use axum::extract::State;
use console::{LINK_LIFE_MS, Visitor};
use protocol::api::ConsoleLink;
use std::sync::Arc;

/// A link that signs one browser in, once and for minutes, with the scopes of the token. Every replica
/// answers, for its own console.
#[utoipa::path(post, path = "/v1/console/links", responses((status = 200, body = ConsoleLink)),
    tag = "console")]
pub(super) async fn create_link(
    ReaderToken(token): ReaderToken,
    State(server): State<Arc<Server>>,
) -> Json<ConsoleLink> {
    let visitor = Visitor::Token { name: token.holder, hash: token.hash, scopes: token.scopes };
    let code = server.sign_in.create_link(visitor);
    let url = console_pages::origins(&server).sign_in_url(&code);
    Json(ConsoleLink { url, expires_in_seconds: LINK_LIFE_MS / 1000 })
}
