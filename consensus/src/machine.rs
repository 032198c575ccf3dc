//! State machine interface: the contract between the replicated log and the application.

use crate::ids::LogIndex;

/// A frozen state that later commands do not change, as a serializer. All replicas serialize a state alike.
pub type Frozen = Box<dyn FnOnce() -> Vec<u8> + Send>;

/// A deterministic state machine: the same commands in the same order give the same state and the same
/// responses on every replica. No clock, randomness, environment or iteration order may influence it.
pub trait StateMachine: Send + Sync + 'static {
    /// Applies one committed command and returns its response. `index` is the command's log index: unique and
    /// rising, with gaps. Invalid input is reported in the response, never by a panic: a panic here stops
    /// every replica, again at each restart.
    fn apply(&mut self, index: LogIndex, command: &[u8]) -> Vec<u8>;

    /// Freezes the current state, to be serialized elsewhere while commands continue. The raft loop calls it
    /// between two commands, so it must take milliseconds at most, as a clone does.
    fn freeze(&self) -> Frozen;

    /// Replaces the whole state by bytes that [`StateMachine::freeze`] produced on some replica.
    ///
    /// # Errors
    /// Returns the reason if the bytes are not a snapshot; the replica then stops.
    fn restore(&mut self, snapshot: &[u8]) -> Result<(), String>;
}
