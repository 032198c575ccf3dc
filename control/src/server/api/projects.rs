//! Projects: what each may hold, holds now and held on average.

use super::ApiResult;
use crate::server::extract::LeaderRead;
use axum::Json;
use protocol::project::ProjectList;

/// The root and the projects in force, with their quotas, what they hold, borrow and held on average, and
/// their shares.
#[utoipa::path(get, path = "/v1/projects", responses((status = 200, body = ProjectList)), tag = "projects")]
pub(super) async fn projects(LeaderRead { server, .. }: LeaderRead) -> ApiResult<ProjectList> {
    Ok(Json(server.read_view(scheduler::project_list)?))
}
