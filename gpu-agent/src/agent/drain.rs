//! Drain of an agent that is asked to end: the streams of its workers and of its gateway finish first, up to
//! a limit. A second request ends what is left at once.
//!
//! The orders stay held: the next agent of this node starts their slots again, if control still names them.

use overlay::CancellationToken;
use std::time::Duration;

/// Longest drain unless the operator chooses another: most answers take less, and an operator who waits for a
/// machine to be free waits no longer.
const DRAIN_LIMIT: Duration = Duration::from_secs(30);

/// Request to drain an agent, and its limit.
#[derive(Debug, Clone)]
pub struct DrainConfig {
    /// Cancelled when the agent must end once its streams have finished.
    pub requested: CancellationToken,
    /// Longest time for the streams to finish.
    pub limit: Duration,
}

impl Default for DrainConfig {
    fn default() -> Self {
        Self { requested: CancellationToken::new(), limit: DRAIN_LIMIT }
    }
}

/// Drain as the main loop and the supervisor of the gateway follow it.
#[derive(Debug, Clone)]
pub(super) struct Drain {
    pub(super) requested: CancellationToken,
    pub(super) limit: Duration,
    /// Cancelled once no gateway process of this agent runs, and none will.
    pub(super) gateway_gone: CancellationToken,
}

impl Drain {
    pub(super) fn new(config: DrainConfig, has_gateway: bool) -> Self {
        let DrainConfig { requested, limit } = config;
        let gateway_gone = CancellationToken::new();
        if !has_gateway {
            gateway_gone.cancel();
        }
        Self { requested, limit, gateway_gone }
    }
}
