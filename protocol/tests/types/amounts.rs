//! Properties of amounts of memory as people write them.

use proptest::prelude::*;
use protocol::manifest::{format_bytes, parse_bytes};

const UNITS: [(&str, u32); 5] = [("B", 0), ("KiB", 10), ("MiB", 20), ("GiB", 30), ("TiB", 40)];

/// Returns the value of a formatted amount in tenths of a byte, without the parser under test.
fn tenths(shown: &str) -> u128 {
    let (number, unit) = shown.split_once(' ').unwrap();
    let (_, shift) = UNITS.iter().find(|(name, _)| *name == unit).unwrap();
    let (whole, tenth) = number.split_once('.').unwrap_or((number, "0"));
    assert_eq!(tenth.len(), 1, "{shown}");
    (whole.parse::<u128>().unwrap() * 10 + tenth.parse::<u128>().unwrap()) << shift
}

proptest! {
    #[test]
    fn an_amount_is_its_number_times_its_unit(
        number: u64, unit in prop::sample::select(UNITS.to_vec()), gap in " {0,3}",
    ) {
        let (name, shift) = unit;
        let exact = u128::from(number) << shift;
        let read = parse_bytes(&format!("{number}{gap}{name}"));
        prop_assert_eq!(read.clone().ok(), u64::try_from(exact).ok(), "{:?}", read);
        if let Err(reason) = read {
            prop_assert!(reason.ends_with("is more than 16 EiB"), "{}", reason);
        }
    }

    #[test]
    fn a_bare_number_counts_bytes(number: u64) {
        prop_assert_eq!(parse_bytes(&number.to_string()), Ok(number));
    }

    /// The rounding error of each unit adds up to less than a tenth of the unit shown.
    #[test]
    fn a_formatted_amount_is_near_the_exact_one(
        bytes in prop_oneof![any::<u64>(), 0..1_u64 << 42, 0..4096_u64],
    ) {
        let shown = format_bytes(bytes);
        let unit = UNITS.iter().find(|(name, _)| shown.ends_with(&format!(" {name}"))).unwrap();
        let error = tenths(&shown).abs_diff(u128::from(bytes) * 10);
        prop_assert!(error < 1 << unit.1, "{} for {}", shown, bytes);
        prop_assert!(bytes >= 1 << 50 || shown.len() <= "1023.9 KiB".len(), "{}", shown);
    }

    #[test]
    fn a_larger_amount_is_never_shown_as_smaller(a: u64, b: u64) {
        let (less, more) = (a.min(b), a.max(b));
        prop_assert!(tenths(&format_bytes(less)) <= tenths(&format_bytes(more)));
    }

    /// Texts that are no amount are refused with the text itself and the accepted form, on one line.
    #[test]
    fn other_texts_are_refused_on_one_line(
        text in prop_oneof![".{0,10}", "[0-9]{0,3}[ \n\t]{0,2}[KMGTiBb]{0,4}"],
    ) {
        if let Err(reason) = parse_bytes(&text) {
            prop_assert!(reason.starts_with('`'), "{:?}", reason);
            prop_assert!(!reason.chars().any(char::is_control), "{:?}", reason);
        } else {
            prop_assert!(text.starts_with(|c: char| c.is_ascii_digit()), "{:?}", text);
        }
    }
}

/// Decimal units and other spellings of a unit are refused: each would be read in two ways.
#[test]
fn units_have_one_spelling() {
    for unit in [
        "b", "kB", "KB", "K", "k", "Kib", "kib", "KIB", "Ki", "Mi", "mb", "MB", "GB", "G", "TB", "PiB", "EiB",
    ] {
        assert!(parse_bytes(&format!("1 {unit}")).is_err(), "{unit}");
        assert!(parse_bytes(&format!("1{unit}")).is_err(), "{unit}");
    }
    for decimal in ["KB", "MB", "GB", "TB", "K", "M", "G", "T"] {
        let reason = parse_bytes(&format!("7 {decimal}")).unwrap_err();
        assert_eq!(reason, format!("`7 {decimal}`: use KiB, MiB, GiB or TiB (powers of 1024)"));
    }
    let reason = parse_bytes("0\tG").unwrap_err();
    assert_eq!(reason, "`0\\tG`: use KiB, MiB, GiB or TiB (powers of 1024)", "one line");
}
