//! Random bytes of the kernel, and the secrets made of them.

use zeroize::Zeroizing;

/// Returns bytes from the operating system's random source.
///
/// # Panics
/// Panics if the operating system has none: no key would be safe then.
#[must_use]
pub fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the operating system gives randomness");
    bytes
}

/// Generates an access token or API key: a readable prefix and 256 random bits.
#[must_use]
pub fn fresh_secret_text(prefix: &str) -> Zeroizing<String> {
    Zeroizing::new(format!("{prefix}-{}", hex::encode(random_bytes::<32>())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_secrets_differ_and_carry_their_prefix_and_256_bits() {
        let (first, second) = (fresh_secret_text("quorate-key"), fresh_secret_text("quorate-key"));
        assert_ne!(*first, *second);
        assert_eq!(first.strip_prefix("quorate-key-").map(str::len), Some(64));
    }
}
