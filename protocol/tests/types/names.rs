//! Properties of names, ids and keys: one text form, one byte form, and an order that both share.

use crate::values;
use proptest::prelude::*;
use protocol::canonical::{from_bytes, to_bytes};
use protocol::keys::ByteString;
use protocol::model::ModelNonce;
use protocol::{
    CircleId, Digest, MemberId, ModelName, ModelRoot, NodeId, NodeName, ProposalId, PublicKey, ServiceName,
    Signature, StoreName, TokenName,
};
use std::fmt::{Debug, Display};
use std::str::FromStr;

/// The rule for names, written down a second time.
fn is_name(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    (1..=63).contains(&text.len())
        && text.starts_with(plain)
        && text.chars().all(|c| plain(c) || c == '-' || c == '.' || c == '_')
}

/// Parses a text as a name of one type by each of the three ways, which must agree.
fn read_name<T>(text: &str) -> Result<String, String>
where
    T: FromStr<Err = String> + TryFrom<String, Error = String> + Display + Debug,
    T: serde::de::DeserializeOwned + serde::Serialize + Into<String>,
{
    let parsed = text.parse::<T>();
    let converted = T::try_from(text.to_string()).map(|name| name.to_string());
    assert_eq!(converted, parsed.as_ref().map(T::to_string).map_err(Clone::clone));
    let json = serde_json::from_value::<T>(text.into()).map(|name| name.to_string());
    assert_eq!(json.ok(), converted.as_ref().ok().cloned());
    let canonical = from_bytes::<T>(&to_bytes(text), 1 << 16).map(Into::into);
    assert_eq!(canonical.ok(), converted.as_ref().ok().cloned());
    converted
}

/// Checks that a fixed number of bytes has one text and one byte form, and that text is compared as bytes.
fn is_strict<T>(values: [T; 2], length: usize)
where
    T: FromStr<Err = String> + Display + Debug + Ord + Copy,
    T: serde::de::DeserializeOwned + serde::Serialize,
{
    let [a, b] = values;
    let (text, other) = (a.to_string(), b.to_string());
    assert_eq!(text.len(), 2 * length);
    assert_eq!(text.parse::<T>(), Ok(a));
    assert_eq!(serde_json::to_value(a).unwrap(), text, "JSON has the text form");
    assert_eq!(serde_json::from_value::<T>(text.clone().into()).unwrap(), a);
    assert_eq!(from_bytes::<ByteString>(&to_bytes(&a), 128).unwrap().0, hex::decode(&text).unwrap());
    assert_eq!(a.cmp(&b), text.cmp(&other), "values sort as their texts do");
    for wrong in [&text[1..], &format!("{text}0"), &format!(" {text}"), &format!("0x{text}"), &text[2..]] {
        assert!(wrong.parse::<T>().is_err(), "{wrong}");
    }
    let shouted = text.to_uppercase();
    assert_eq!(shouted.parse::<T>().is_ok(), shouted == text, "{shouted}");
    assert!(from_bytes::<T>(&to_bytes(text.as_str()), 256).is_err(), "text is no canonical form of bytes");
}

proptest! {
    /// The same rule holds for names of every type.
    #[test]
    fn names_follow_one_rule(text in prop_oneof![
        "[a-z0-9._-]{0,6}", "[a-zA-Z0-9._/ -]{0,6}", "[a-z0-9]{60,66}", ".{0,8}",
    ]) {
        let read = [
            read_name::<ServiceName>(&text),
            read_name::<MemberId>(&text),
            read_name::<NodeName>(&text),
            read_name::<StoreName>(&text),
            read_name::<ModelName>(&text),
            read_name::<TokenName>(&text),
        ];
        for found in &read {
            prop_assert_eq!(found.is_ok(), is_name(&text), "{:?}: {:?}", text, found);
            match found {
                Ok(name) => prop_assert_eq!(name, &text),
                Err(reason) => prop_assert!(reason.starts_with("name `"), "{}", reason),
            }
        }
    }

    /// A reason for people contains no character that could garble a terminal.
    #[test]
    fn a_refused_name_is_shown_escaped(text: String) {
        if let Err(reason) = text.parse::<ServiceName>() {
            prop_assert!(!reason.chars().any(char::is_control), "{:?}", reason);
        }
    }

    #[test]
    fn ids_and_keys_have_one_text_and_one_byte_form(
        first: [u8; 32], second: [u8; 32], nonces: [[u8; 16]; 2],
        signatures in [values::signature(), values::signature()],
    ) {
        is_strict([Digest(first), Digest(second)], Digest::LENGTH);
        is_strict([PublicKey(first), PublicKey(second)], PublicKey::LENGTH);
        is_strict([CircleId(Digest(first)), CircleId(Digest(second))], 32);
        is_strict([ProposalId(Digest(first)), ProposalId(Digest(second))], 32);
        is_strict([ModelRoot(Digest(first)), ModelRoot(Digest(second))], 32);
        is_strict([NodeId(PublicKey(first)), NodeId(PublicKey(second))], 32);
        is_strict(nonces.map(ModelNonce), ModelNonce::LENGTH);
        is_strict(signatures, Signature::LENGTH);
    }

    /// The short form is for display: it begins the long one and identifies nothing.
    #[test]
    fn a_short_form_begins_the_long_one(bytes: [u8; 32]) {
        let long = Digest(bytes).to_string();
        for short in [
            Digest(bytes).short(),
            PublicKey(bytes).short(),
            CircleId(Digest(bytes)).short(),
            NodeId(PublicKey(bytes)).short(),
        ] {
            prop_assert_eq!(&short, &long[..8]);
            prop_assert!(short.parse::<Digest>().is_err());
        }
        prop_assert_eq!(format!("{:?}", Digest(bytes)), format!("Digest({})", &long[..8]));
    }

    /// A byte string of any length comes back from both forms, and `Debug` does not print secrets.
    #[test]
    fn byte_strings_keep_their_bytes_to_themselves(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        let string = ByteString(bytes.clone());
        prop_assert_eq!(serde_json::to_value(&string).unwrap(), hex::encode(&bytes));
        prop_assert_eq!(from_bytes::<ByteString>(&to_bytes(&string), 128), Ok(string.clone()));
        prop_assert_eq!(format!("{string:?}"), format!("ByteString({} bytes)", bytes.len()));
        let odd = format!("\"{}0\"", hex::encode(&bytes));
        prop_assert!(serde_json::from_str::<ByteString>(&odd).is_err(), "an odd number of digits");
    }

    /// Digests of the same bytes differ between domains.
    #[test]
    fn domains_separate_all_bytes(bytes: Vec<u8>, other: Vec<u8>) {
        let digest = Digest::of_domain("quorate/test/v1", &bytes);
        prop_assert_ne!(digest, Digest::of_domain("quorate/test/v2", &bytes));
        prop_assert_ne!(digest, Digest::of(&bytes));
        prop_assert_eq!(digest == Digest::of_domain("quorate/test/v1", &other), bytes == other);
    }

    #[test]
    fn time_advances_and_stops_at_its_end(time: u64, more: u64) {
        let later = protocol::Millis(time).plus(more);
        prop_assert!(later >= protocol::Millis(time));
        prop_assert_eq!(u128::from(later.0), (u128::from(time) + u128::from(more)).min(u64::MAX.into()));
    }
}
