//! Building block of the invariant checks: a condition with the text of its violation.

/// Returns the text of the violation unless the invariant `holds`.
pub(crate) fn require(holds: bool, violation: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(violation()) }
}

#[cfg(test)]
mod tests {
    use super::require;

    #[test]
    fn only_a_violation_has_a_text() {
        assert_eq!(require(true, || unreachable!()), Ok(()));
        assert_eq!(require(false, || "broken".to_owned()), Err("broken".to_owned()));
    }
}
