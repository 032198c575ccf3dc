//! The contract between a replicated log and what it drives. Nothing here does anything.

/// A state that no command reaches any more, and how it becomes bytes: the same on every replica.
pub type Frozen = Box<dyn FnOnce() -> Vec<u8> + Send>;

/// A deterministic state machine: the same commands in the same order give the same state and the same
/// responses on every replica. No clock, randomness, environment or iteration order may reach it.
pub trait StateMachine: Send + Sync + 'static {
    /// Applies one committed command and returns its response. `index` is the command's place in the
    /// log: unique, rising, with gaps. Bad input is answered in the response, never with a panic: a
    /// panic here ends every replica, and again at each restart.
    fn apply(&mut self, index: u64, command: &[u8]) -> Vec<u8>;

    /// The whole state as it is now, to be made into bytes elsewhere while commands go on.
    /// Called by the raft loop between two commands: keep it to milliseconds, as a clone is.
    fn freeze(&self) -> Frozen;

    /// Replaces the whole state by the bytes that [`StateMachine::freeze`] led to on some replica.
    ///
    /// # Errors
    /// With the reason when the bytes are not a snapshot; the replica then stops.
    fn restore(&mut self, snapshot: &[u8]) -> Result<(), String>;
}
