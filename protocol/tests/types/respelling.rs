//! Encoder of CBOR with one deviation from the canonical form: the same value in other bytes, as a second
//! implementation, or an attacker, could write it.

use ciborium::value::Value as Cbor;

/// Deviation that leaves the meaning of the bytes as it was, or nearly so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Deviation {
    /// A length or number takes more bytes than needed.
    Widened,
    /// A text, byte string, array or map has an indefinite length.
    Indefinite,
    /// Two neighbouring entries of a map are exchanged.
    Swapped,
    /// An entry of a map appears twice.
    Doubled,
    /// A value has a tag: 55799, which by its definition changes nothing.
    Tagged,
    /// A number is a float.
    Float,
    /// A number is a bignum.
    Bignum,
    /// A null is the value `undefined`.
    Undefined,
}

pub(crate) const DEVIATIONS: [Deviation; 8] = [
    Deviation::Widened,
    Deviation::Indefinite,
    Deviation::Swapped,
    Deviation::Doubled,
    Deviation::Tagged,
    Deviation::Float,
    Deviation::Bignum,
    Deviation::Undefined,
];

/// Writes the value with this deviation in one place; `pick` selects among the places where it is possible.
/// Returns none where there is no such place.
pub(crate) fn respell(value: &Cbor, deviation: Deviation, pick: usize) -> Option<Vec<u8>> {
    let mut count = Writer { deviation, at: usize::MAX, places: 0, out: Vec::new() };
    count.value(value);
    let at = pick.checked_rem(count.places)?;
    let mut writer = Writer { deviation, at, places: 0, out: Vec::new() };
    writer.value(value);
    Some(writer.out)
}

/// Writes the value without any deviation.
pub(crate) fn spell(value: &Cbor) -> Vec<u8> {
    let mut writer = Writer { deviation: Deviation::Tagged, at: usize::MAX, places: 0, out: Vec::new() };
    writer.value(value);
    writer.out
}

struct Writer {
    deviation: Deviation,
    /// Number of the place to deviate in.
    at: usize,
    /// Number of places seen so far.
    places: usize,
    out: Vec<u8>,
}

impl Writer {
    /// Counts a place where `deviation` is possible and reports whether to deviate there.
    fn deviates(&mut self, deviation: Deviation) -> bool {
        let here = self.deviation == deviation;
        let chosen = here && self.places == self.at;
        self.places += usize::from(here);
        chosen
    }

    fn value(&mut self, value: &Cbor) {
        if self.deviates(Deviation::Tagged) {
            self.out.extend([0xd9, 0xd9, 0xf7]);
        }
        match value {
            Cbor::Integer(number) => self.integer(i128::from(*number)),
            Cbor::Bytes(bytes) => self.string(2, bytes),
            Cbor::Text(text) => self.string(3, text.as_bytes()),
            Cbor::Array(items) => {
                let indefinite = self.open(4, items.len());
                items.iter().for_each(|item| self.value(item));
                self.close(indefinite);
            }
            Cbor::Map(entries) => self.map(entries),
            Cbor::Bool(value) => self.out.push(0xf4 + u8::from(*value)),
            Cbor::Null if self.deviates(Deviation::Undefined) => self.out.push(0xf7),
            Cbor::Null => self.out.push(0xf6),
            other => panic!("canonical form has no {other:?}"),
        }
    }

    fn integer(&mut self, number: i128) {
        let (major, argument) = if number < 0 { (1, -1 - number) } else { (0, number) };
        if self.deviates(Deviation::Float) {
            self.out.push(0xfb);
            return self.out.extend((number as f64).to_be_bytes());
        }
        if self.deviates(Deviation::Bignum) {
            self.out.extend([0xc2 + major, 0x48]);
            return self.out.extend(u64::try_from(argument).unwrap().to_be_bytes());
        }
        self.header(major, u64::try_from(argument).unwrap());
    }

    /// Writes a text or a byte string; with an indefinite length, it is one chunk.
    fn string(&mut self, major: u8, bytes: &[u8]) {
        let indefinite = self.deviates(Deviation::Indefinite);
        if indefinite {
            self.out.push(major << 5 | 31);
        }
        self.header(major, bytes.len() as u64);
        self.out.extend_from_slice(bytes);
        self.close(indefinite);
    }

    fn map(&mut self, entries: &[(Cbor, Cbor)]) {
        let mut entries = entries.to_vec();
        if entries.len() > 1 && self.deviates(Deviation::Swapped) {
            entries.swap(0, 1);
        }
        if !entries.is_empty() && self.deviates(Deviation::Doubled) {
            entries.insert(1, entries[0].clone());
        }
        let indefinite = self.open(5, entries.len());
        for (key, value) in &entries {
            self.value(key);
            self.value(value);
        }
        self.close(indefinite);
    }

    fn open(&mut self, major: u8, length: usize) -> bool {
        let indefinite = self.deviates(Deviation::Indefinite);
        if indefinite {
            self.out.push(major << 5 | 31);
        } else {
            self.header(major, length as u64);
        }
        indefinite
    }

    fn close(&mut self, indefinite: bool) {
        self.out.extend(indefinite.then_some(0xff));
    }

    /// Writes a major type and its argument in the fewest bytes, or in the next larger number of bytes.
    fn header(&mut self, major: u8, argument: u64) {
        let width = match argument {
            0..24 => 0,
            24..256 => 1,
            256..0x1_0000 => 2,
            0x1_0000..0x1_0000_0000 => 3,
            _ => 4,
        };
        let width = if width < 4 && self.deviates(Deviation::Widened) { width + 1 } else { width };
        let low = if width == 0 { argument as u8 } else { 23 + width };
        self.out.push(major << 5 | low);
        let bytes = argument.to_be_bytes();
        let count = if width == 0 { 0 } else { 1 << (width - 1) };
        self.out.extend_from_slice(&bytes[8 - count..]);
    }
}

/// Checks the tool itself: each deviation of a sample in its first place, in hexadecimal.
#[test]
fn each_deviation_is_written_as_the_standard_has_it() {
    let text = |text: &str| Cbor::Text(text.into());
    let entry = |key: &str, value: Cbor| (text(key), value);
    let sample = Cbor::Map(vec![entry("a", Cbor::Integer((-1).into())), entry("b", Cbor::Null)]);
    assert_eq!(hex::encode(spell(&sample)), "a26161206162f6");
    for (deviation, expected) in [
        (Deviation::Widened, "b8026161206162f6"),
        (Deviation::Indefinite, "bf6161206162f6ff"),
        (Deviation::Swapped, "a26162f6616120"),
        (Deviation::Doubled, "a36161206161206162f6"),
        (Deviation::Tagged, "d9d9f7a26161206162f6"),
        (Deviation::Float, "a26161fbbff00000000000006162f6"),
        (Deviation::Bignum, "a26161c34800000000000000006162f6"),
        (Deviation::Undefined, "a26161206162f7"),
    ] {
        let written = respell(&sample, deviation, 0).map(hex::encode);
        assert_eq!(written, Some(expected.to_string()), "{deviation:?}");
    }
    assert_eq!(respell(&Cbor::Null, Deviation::Swapped, 7), None, "there are no entries to swap");
}
