//! Tests of the codec: any k of k + m shards restore the segment, and every altered bit is detected.

use super::*;
use crate::testing::seeded;
use proptest::prelude::*;

const NONCE: ModelNonce = ModelNonce([3; 16]);

fn coded(code: ErasureCode, plain: &[u8]) -> (Cipher, Coder, Segment, Vec<u8>) {
    let (cipher, coder) = (Cipher::new(&ModelKey::from_bytes([1; 32]), NONCE), Coder::new(code));
    let mut block = vec![0; coder.shard_length(plain.len()) * code.shards()];
    block[..plain.len()].copy_from_slice(plain);
    cipher.seal(7, 4096, plain.len(), &mut block);
    coder.encode(&mut block);
    let shards = block.chunks_exact(coder.shard_length(plain.len())).map(Digest::of).collect();
    let segment = Segment { offset: 4096, length: plain.len() as u32, digest: Digest::of(plain), shards };
    (cipher, coder, segment, block)
}

fn opens(cipher: &Cipher, segment: &Segment, block: &[u8]) -> Option<Vec<u8>> {
    let mut plain = vec![0; segment.length as usize];
    cipher.open(7, segment, block, &mut plain).then_some(plain)
}

proptest! {
    #[test]
    fn any_k_of_k_plus_m_shards_suffice_and_fewer_do_not(
        data in 1u8..7,
        parity in 0u8..5,
        length in 1usize..5000,
        keep in proptest::collection::vec(any::<bool>(), 12),
        all: bool,
    ) {
        let code = ErasureCode { data, parity };
        let plain = seeded("codec", length);
        let (cipher, coder, segment, block) = coded(code, &plain);
        let present = keep[..code.shards()].to_vec();
        let mut damaged = block.clone();
        let size = coder.shard_length(length);
        for (shard, present) in present.iter().enumerate() {
            if !present {
                damaged[shard * size..(shard + 1) * size].fill(0xee);
            }
        }
        let count = present.iter().filter(|present| **present).count();
        let rebuilt = coder.rebuild(&mut damaged, &present, all);
        prop_assert_eq!(rebuilt, count >= usize::from(data));
        if rebuilt {
            prop_assert_eq!(opens(&cipher, &segment, &damaged), Some(plain));
            prop_assert!(!all || damaged == block);
        }
    }
}

#[test]
fn every_bit_of_the_ciphertext_and_the_tag_counts() {
    let plain = seeded("bits", 200);
    let (cipher, _, segment, block) = coded(ErasureCode { data: 4, parity: 2 }, &plain);
    for bit in 0..(plain.len() + TAG_BYTES) * 8 {
        let mut altered = block.clone();
        altered[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(opens(&cipher, &segment, &altered), None, "bit {bit}");
    }
    assert_eq!(opens(&cipher, &segment, &block), Some(plain));
}

#[test]
fn a_segment_opens_only_as_itself() {
    let plain = seeded("itself", 500);
    let code = ErasureCode { data: 3, parity: 1 };
    let (cipher, _, segment, block) = coded(code, &plain);
    let mut out = vec![0; plain.len()];
    assert!(!cipher.open(8, &segment, &block, &mut out), "another index");
    let moved = Segment { offset: 8192, ..segment.clone() };
    assert!(!cipher.open(7, &moved, &block, &mut out), "another place");
    let other = Segment { digest: Digest::of(b"other"), ..segment.clone() };
    assert!(!cipher.open(7, &other, &block, &mut out), "another digest");
    let other = Cipher::new(&ModelKey::from_bytes([2; 32]), NONCE);
    assert!(!other.open(7, &segment, &block, &mut out), "another key");
    let replayed = Cipher::new(&ModelKey::from_bytes([1; 32]), ModelNonce([4; 16]));
    assert!(!replayed.open(7, &segment, &block, &mut out), "another import under the same key");
}

#[test]
fn a_store_sees_no_plaintext() {
    let plain = vec![0; 4000];
    let (_, coder, _, block) = coded(ErasureCode { data: 4, parity: 2 }, &plain);
    for shard in block.chunks_exact(coder.shard_length(plain.len())) {
        assert!(shard.windows(16).all(|window| window != [0; 16]));
    }
}
