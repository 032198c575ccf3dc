//! BLAKE3-256 digests. Content cannot be changed without changing the digest that names it.

use crate::fixed_bytes::fixed_bytes;

fixed_bytes!(
    /// BLAKE3 digest of 32 bytes.
    Digest,
    32
);

impl Digest {
    /// Returns the digest of plain bytes: segments, shards, files.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// Returns the digest of a value that is signed or named by its meaning. The domain separates purposes: a
    /// digest made for one is never valid for another (BLAKE3's key derivation mode).
    #[must_use]
    pub fn of_domain(domain: &str, bytes: &[u8]) -> Self {
        debug_assert!(!domain.is_empty(), "a domain names a purpose");
        let mut hasher = blake3::Hasher::new_derive_key(domain);
        hasher.update(bytes);
        Self(*hasher.finalize().as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_the_published_blake3_vector_for_the_empty_input() {
        let expected = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262";
        assert_eq!(Digest::of(b"").to_string(), expected);
    }

    #[test]
    fn domains_separate() {
        assert_ne!(Digest::of_domain("a/v1", b"x"), Digest::of_domain("b/v1", b"x"));
        assert_ne!(Digest::of_domain("a/v1", b"x"), Digest::of(b"x"));
    }

    #[test]
    fn text_form_is_strict() {
        let digest = Digest::of(b"x");
        assert_eq!(digest.to_string().parse::<Digest>(), Ok(digest));
        for bad in ["", "00", &digest.to_string().to_uppercase(), &format!("{digest}0")] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
    }
}
