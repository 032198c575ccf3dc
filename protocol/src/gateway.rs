//! What a gateway's agent hands it: who serves what, and which API keys exist.

use crate::digest::Digest;
use crate::ids::{Fence, ModelName, NodeId, ServiceName, SlotIndex, TokenName};
use crate::manifest::Task;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// One slot and the node that holds it now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// Which slot.
    pub slot: SlotIndex,
    /// Under which order; a ticket with another fence is refused.
    pub fence: Fence,
    /// Whose ticket counts.
    pub node: NodeId,
    /// The slot is about to end: what runs on it finishes, nothing new is sent to it.
    pub draining: bool,
}

/// A service as the gateway sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RoutedService {
    /// The service; clients may use its name as the model's.
    pub service: ServiceName,
    /// The model name that clients send.
    pub model: ModelName,
    /// What it answers.
    pub task: Task,
    /// Who holds its slots.
    pub routes: Vec<Route>,
}

/// An inference key, by its hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ApiKey {
    /// What people call it.
    pub name: TokenName,
    /// BLAKE3 of its text.
    pub hash: Digest,
    /// Requests per minute; none = unlimited.
    pub requests_per_minute: Option<u32>,
}

/// The whole table; each push replaces the last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema, Default)]
#[serde(deny_unknown_fields)]
pub struct RouteTable {
    /// Rises with every change; an older table is ignored.
    pub version: u64,
    /// Services, by name.
    pub services: Vec<RoutedService>,
    /// API keys, by name.
    pub api_keys: Vec<ApiKey>,
}

/// What the gateway answers to a pushed table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TableAccepted {
    /// The version now in force.
    pub version: u64,
    /// Workers connected with a valid ticket now.
    pub workers: u32,
}
