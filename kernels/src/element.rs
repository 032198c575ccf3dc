//! Types of a checkpoint's elements.

/// Elements that are tested between two branches.
const SCAN_ELEMENTS: usize = 4096;

/// Element type that the engines support.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ElementType {
    /// IEEE 754 single precision.
    F32,
    /// IEEE 754 half precision.
    F16,
    /// bfloat16: single precision with a truncated significand.
    Bf16,
}

impl ElementType {
    /// Returns the size of one element in bytes.
    #[must_use]
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// Returns the index of the first NaN or infinity in these elements: all bits of its exponent are set.
    #[must_use]
    pub fn first_not_finite(self, bytes: &[u8]) -> Option<usize> {
        match self {
            Self::F32 => first(bytes, |b: [u8; 4]| u32::from_le_bytes(b) & 0x7f80_0000 == 0x7f80_0000),
            Self::F16 => first(bytes, |b: [u8; 2]| u16::from_le_bytes(b) & 0x7c00 == 0x7c00),
            Self::Bf16 => first(bytes, |b: [u8; 2]| u16::from_le_bytes(b) & 0x7f80 == 0x7f80),
        }
    }
}

/// Returns the index of the first element with this property. Whole blocks are tested without a branch, at
/// the speed of memory.
fn first<const SIZE: usize>(bytes: &[u8], is_found: impl Fn([u8; SIZE]) -> bool) -> Option<usize> {
    let (elements, _) = bytes.as_chunks::<SIZE>();
    elements.chunks(SCAN_ELEMENTS).enumerate().find_map(|(index, block)| {
        let any = block.iter().fold(false, |any, element| any | is_found(*element));
        let place = if any { block.iter().position(|element| is_found(*element)) } else { None };
        place.map(|place| index * SCAN_ELEMENTS + place)
    })
}
