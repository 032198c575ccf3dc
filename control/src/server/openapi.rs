//! The OpenAPI document, generated from the handlers and types that it describes.

use super::api::ApiDocument;
use super::idempotency;
use axum::Json;
use protocol::api::Problem;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{ContentBuilder, OpenApi, Ref, RefOr, ResponseBuilder, SecurityRequirement};
use utoipa::{OpenApi as _, ToSchema};

/// Paths of the `POST` operations that take no idempotency key: two change nothing that is replicated, and a
/// halt is the same halt however often it is sent.
const WITHOUT_KEY: [&str; 3] = ["/v1/dry-run", "/v1/console/links", "/v1/halts"];
/// Name of the bearer scheme in the document.
const BEARER: &str = "access_token";

/// Returns the complete document: every operation needs a token and may answer with a [`Problem`].
#[must_use]
pub fn document() -> OpenApi {
    let mut document = ApiDocument::openapi();
    let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
    let components = document.components.get_or_insert_with(Default::default);
    components.add_security_scheme(BEARER, SecurityScheme::Http(scheme));
    document.security = Some(vec![SecurityRequirement::new(BEARER, Vec::<String>::new())]);
    for (path, item) in &mut document.paths.paths {
        let writes = [&mut item.post, &mut item.put, &mut item.delete].into_iter().flatten();
        writes.filter(|_| !WITHOUT_KEY.contains(&path.as_str())).for_each(idempotency::describe);
        let operations = [&mut item.get, &mut item.post, &mut item.put, &mut item.delete];
        for operation in operations.into_iter().flatten() {
            let schema = Ref::from_schema_name(Problem::name());
            let content = ContentBuilder::new().schema(Some(schema)).build();
            let response = ResponseBuilder::new()
                .description("Refused; `code` is stable, and `quorate explain CODE` describes it.")
                .content("application/json", content)
                .build();
            operation.responses.responses.insert("default".into(), RefOr::T(response));
        }
    }
    document
}

/// Handles `GET /openapi.json`.
pub(crate) async fn serve() -> Json<OpenApi> {
    Json(document())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_write_takes_an_idempotency_key_and_no_read_does() {
        let document = serde_json::to_value(document()).expect("a document is JSON");
        let mut writes = 0;
        for (path, item) in document["paths"].as_object().expect("paths") {
            for (method, operation) in item.as_object().expect("operations") {
                let parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
                let takes = parameters.iter().any(|parameter| parameter["name"] == "Idempotency-Key");
                assert_eq!(
                    takes,
                    method != "get" && !WITHOUT_KEY.contains(&path.as_str()),
                    "{method} {path}"
                );
                writes += usize::from(takes);
            }
        }
        assert!(writes >= 8, "{writes} writes");
    }

    #[test]
    fn every_operation_can_answer_with_a_problem() {
        let document = serde_json::to_value(document()).expect("a document is JSON");
        let paths = document["paths"].as_object().expect("paths");
        assert!(paths.len() >= 15, "{} paths", paths.len());
        for (path, item) in paths {
            for (method, operation) in item.as_object().expect("operations") {
                assert!(operation["responses"]["default"].is_object(), "{method} {path}");
                assert!(operation["responses"]["200"].is_object(), "{method} {path}");
            }
        }
    }
}
