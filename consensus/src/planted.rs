//! Defects that a test plants in the log, to prove that the simulation detects them. Other builds have none.

/// A defect that the log once had, or might have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Defect {
    /// A suffix that was replaced from an index in a truncated segment is rejected at the next start.
    FrontRefused,
    /// A snapshot that replaced the log without a mark never gets one.
    MarkForgotten,
    /// A batch is reported as durable without a sync.
    SyncForgotten,
    /// A new segment is used before its name is durable.
    NameForgotten,
    /// A torn record is not overwritten with zeros.
    TornLeft,
    /// The bytes of durable batches remain counted as unwritten.
    BytesLeft,
}

#[cfg(test)]
std::thread_local! {
    static PLANTED: std::cell::Cell<Option<Defect>> = const { std::cell::Cell::new(None) };
}

/// Plants a defect in this thread, or removes it.
#[cfg(test)]
pub(crate) fn plant(defect: Option<Defect>) {
    PLANTED.set(defect);
}

/// Returns whether the defect is planted in this thread.
#[cfg(test)]
pub(crate) fn planted(defect: Defect) -> bool {
    PLANTED.get() == Some(defect)
}

/// Returns whether the defect is planted: never outside tests.
#[cfg(not(test))]
pub(crate) const fn planted(_: Defect) -> bool {
    false
}
