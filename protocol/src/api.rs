//! Types of the control HTTP API, as JSON. The OpenAPI document is generated from them.
