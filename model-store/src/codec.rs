//! Segment codec: AES-256-GCM encryption, then Reed-Solomon coding. Pure computation on borrowed memory.
//!
//! A *block* is the memory of one coded segment: k + m shards of equal length, side by side. Its first k
//! shards hold the ciphertext, the 16-byte tag, and zeros up to the shard length. A healthy read therefore
//! decrypts straight out of the block and never runs the erasure code.

use crate::key::ModelKey;
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use protocol::Digest;
use protocol::model::{ErasureCode, ModelNonce, Segment};
use reed_solomon_erasure::galois_8::ReedSolomon;

const SEGMENT_KEY_DOMAIN: &str = "quorate/model-segment-key/v1";
/// Length of a GCM tag in bytes.
pub(crate) const TAG_BYTES: usize = 16;

/// Encrypts and decrypts the segments of one model.
pub(crate) struct Cipher {
    key: LessSafeKey,
    nonce: ModelNonce,
}

impl Cipher {
    /// Returns the cipher of one import. The segment key is derived from the model's key *and* the import's
    /// nonce, so a segment's index is safe as its GCM nonce.
    pub(crate) fn new(key: &ModelKey, nonce: ModelNonce) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key(SEGMENT_KEY_DOMAIN);
        let derived = hasher.update(key.bytes()).update(&nonce.0).finalize();
        let key = UnboundKey::new(&AES_256_GCM, derived.as_bytes()).expect("AES-256 takes any 32 bytes");
        Self { key: LessSafeKey::new(key), nonce }
    }

    /// Encrypts the first `length` bytes of `block` in place and appends the tag.
    pub(crate) fn seal(&self, index: u32, offset: u64, length: usize, block: &mut [u8]) {
        assert!(length + TAG_BYTES <= block.len(), "a block has room for the tag");
        let aad = self.associated(index, offset, length);
        let (plain, rest) = block.split_at_mut(length);
        let tag = self.key.seal_in_place_separate_tag(segment_nonce(index), Aad::from(aad), plain);
        // GCM rejects only messages of more than 64 GiB.
        rest[..TAG_BYTES].copy_from_slice(tag.expect("a segment is at most 1 MiB").as_ref());
    }

    /// Decrypts the ciphertext at the start of `block` into `plain`, then checks the tag and the digest. If
    /// this returns false, `plain` holds nothing that may be used.
    pub(crate) fn open(&self, index: u32, segment: &Segment, block: &[u8], plain: &mut [u8]) -> bool {
        let length = segment.length as usize;
        assert_eq!(plain.len(), length, "the plaintext is as long as its segment");
        let aad = self.associated(index, segment.offset, length);
        let (ciphertext, tag) = (&block[..length], &block[length..length + TAG_BYTES]);
        let opened =
            self.key.open_separate_gather(segment_nonce(index), Aad::from(aad), ciphertext, tag, plain);
        opened.is_ok() && Digest::of(plain) == segment.digest
    }

    /// Returns the data that a segment's tag also covers: the import's nonce and the segment's index, offset
    /// and length.
    fn associated(&self, index: u32, offset: u64, length: usize) -> [u8; 36] {
        let mut bytes = [0; 36];
        bytes[..16].copy_from_slice(&self.nonce.0);
        bytes[16..20].copy_from_slice(&index.to_be_bytes());
        bytes[20..28].copy_from_slice(&offset.to_be_bytes());
        bytes[28..].copy_from_slice(&(length as u64).to_be_bytes());
        bytes
    }
}

fn segment_nonce(index: u32) -> Nonce {
    let mut bytes = [0; 12];
    bytes[8..].copy_from_slice(&index.to_be_bytes());
    Nonce::assume_unique_for_key(bytes)
}

/// Computes and reconstructs shards. It uses no keys, so repair needs none.
pub(crate) struct Coder {
    code: ErasureCode,
    /// `None` without parity: the shards are then the ciphertext, and none can be reconstructed.
    reed_solomon: Option<ReedSolomon>,
}

impl Coder {
    /// Returns the coder of an erasure code whose bounds were checked.
    pub(crate) fn new(code: ErasureCode) -> Self {
        let (data, parity) = (usize::from(code.data), usize::from(code.parity));
        let coder = || ReedSolomon::new(data, parity).expect("1 to 32 data and parity shards are a code");
        Self { code, reed_solomon: (parity > 0).then(coder) }
    }

    pub(crate) fn data(&self) -> usize {
        usize::from(self.code.data)
    }

    /// Returns the length in bytes of one shard of a segment of `length` plaintext bytes.
    pub(crate) fn shard_length(&self, length: usize) -> usize {
        shard_length(self.code, length)
    }

    /// Computes the parity shards of a block whose data shards are in place.
    pub(crate) fn encode(&self, block: &mut [u8]) {
        let Some(reed_solomon) = &self.reed_solomon else { return };
        assert!(block.len().is_multiple_of(self.code.shards()), "a block is whole shards");
        let length = block.len() / self.code.shards();
        let (data, parity) = block.split_at_mut(length * self.data());
        let data: Vec<&[u8]> = data.chunks_exact(length).collect();
        let mut parity: Vec<&mut [u8]> = parity.chunks_exact_mut(length).collect();
        reed_solomon.encode_sep(&data, &mut parity).expect("a block is whole shards of one length");
    }

    /// Reconstructs absent data shards of a block; with `all`, absent parity shards too. Returns false if
    /// fewer than k shards are present. Present but corrupt shards corrupt the result, so check the digests.
    pub(crate) fn rebuild(&self, block: &mut [u8], present: &[bool], all: bool) -> bool {
        assert!(block.len().is_multiple_of(self.code.shards()), "a block is whole shards");
        assert_eq!(present.len(), self.code.shards(), "each shard is present or absent");
        let length = block.len() / self.code.shards();
        let needed = if all { present } else { &present[..self.data()] };
        if needed.iter().all(|present| *present) {
            return true;
        }
        if present.iter().filter(|present| **present).count() < self.data() {
            return false;
        }
        let Some(reed_solomon) = &self.reed_solomon else { return false };
        let mut shards: Vec<(&mut [u8], bool)> =
            block.chunks_exact_mut(length).zip(present).map(|(shard, present)| (shard, *present)).collect();
        let rebuilt = if all {
            reed_solomon.reconstruct(&mut shards)
        } else {
            reed_solomon.reconstruct_data(&mut shards)
        };
        rebuilt.is_ok()
    }
}

/// Returns the length in bytes of one shard of a segment of `length` plaintext bytes.
pub(crate) fn shard_length(code: ErasureCode, length: usize) -> usize {
    debug_assert!(code.data > 0, "a code has data shards");
    (length + TAG_BYTES).div_ceil(usize::from(code.data))
}

#[cfg(test)]
mod tests;
