//! Route table that an agent pushes to its gateway: services with their slots, and API keys.

use crate::digest::Digest;
use crate::ids::{Fence, ModelName, NodeId, ServiceName, SlotIndex, TokenName};
use crate::manifest::Task;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Route to one slot: the slot and the node that holds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// Index of the slot within its service.
    pub slot: SlotIndex,
    /// Fence of the order under which the slot is held; the gateway rejects a ticket with another fence.
    pub fence: Fence,
    /// Node whose tickets are valid for the slot.
    pub node: NodeId,
    /// True if the slot is about to end: running requests finish, and the gateway sends no new ones.
    pub draining: bool,
}

/// Service with its routes, as the gateway sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RoutedService {
    /// Name of the service; clients may send it as the model name.
    pub service: ServiceName,
    /// Model name that clients send.
    pub model: ModelName,
    /// Task that the service performs.
    pub task: Task,
    /// Slots of the service, each with the node that holds it.
    pub routes: Vec<Route>,
}

/// Inference key, identified by its hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ApiKey {
    /// Name that people gave the key.
    pub name: TokenName,
    /// BLAKE3 digest of the key's text.
    pub hash: Digest,
    /// Maximum number of requests per minute; none = unlimited.
    pub requests_per_minute: Option<u32>,
}

/// Complete route table; each push replaces the previous one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema, Default)]
#[serde(deny_unknown_fields)]
pub struct RouteTable {
    /// Version; rises with every change. The gateway ignores an older table.
    pub version: u64,
    /// Services, by name.
    pub services: Vec<RoutedService>,
    /// API keys, by name.
    pub api_keys: Vec<ApiKey>,
}

/// Answer of the gateway to a pushed table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TableAccepted {
    /// Version of the table now in force.
    pub version: u64,
    /// Number of connected workers with a valid ticket.
    pub workers: u32,
}
