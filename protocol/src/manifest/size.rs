//! Amounts of memory in human-readable form: `512 MiB`, `2GiB`, `1048576`.

/// Parses an amount of bytes. Only binary units are accepted: a "GB" that is sometimes 1000³ and sometimes
/// 1024³ has caused real outages elsewhere.
///
/// # Errors
/// Returns an error text that states the accepted form.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(split);
    debug_assert!(digits.bytes().all(|c| c.is_ascii_digit()), "an amount begins with its digits");
    let shown = text.escape_debug();
    let refuse = || format!("`{shown}` is not an amount like `512 MiB` or `2 GiB`");
    let number: u64 = digits.parse().map_err(|_| refuse())?;
    let factor: u64 = match unit.trim() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        "KB" | "MB" | "GB" | "TB" | "K" | "M" | "G" | "T" => {
            return Err(format!("`{shown}`: use KiB, MiB, GiB or TiB (powers of 1024)"));
        }
        _ => return Err(refuse()),
    };
    debug_assert!(factor.is_power_of_two(), "units are binary");
    number.checked_mul(factor).ok_or_else(|| format!("`{shown}` is more than 16 EiB"))
}

/// Formats an amount of bytes in the largest unit that keeps it short: `90.3 MiB`.
#[must_use]
pub fn format_bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut unit = 0;
    let mut tenths = u128::from(bytes) * 10;
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        tenths = (tenths + 512) / 1024;
        unit += 1;
    }
    debug_assert!(unit == 0 || tenths >= 10, "a unit is not larger than the amount");
    debug_assert!(unit > 0 || tenths % 10 == 0, "bytes have no tenths");
    if tenths % 10 == 0 || unit == 0 {
        format!("{} {}", tenths / 10, UNITS[unit])
    } else {
        format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn amounts_read_as_people_write_them() {
        for (text, expected) in [
            ("0", Some(0)),
            ("512", Some(512)),
            ("512 B", Some(512)),
            ("1KiB", Some(1024)),
            ("512 MiB", Some(512 << 20)),
            ("2GiB", Some(2 << 30)),
            ("1 TiB", Some(1 << 40)),
            ("", None),
            ("MiB", None),
            ("-1", None),
            ("1.5 GiB", None),
            ("1 GB", None),
            ("1 gib", None),
            ("1 MiB extra", None),
            ("99999999999999999999", None),
            ("16777216 TiB", None),
        ] {
            assert_eq!(parse_bytes(text).ok(), expected, "{text}");
        }
    }

    #[test]
    fn decimal_units_are_refused_with_the_remedy() {
        assert!(parse_bytes("1 GB").expect_err("decimal").contains("powers of 1024"));
    }

    #[test]
    fn amounts_print_short() {
        for (bytes, expected) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (90_868_376, "86.7 MiB"),
            (1 << 30, "1 GiB"),
            (u64::MAX, "16777216 TiB"),
        ] {
            assert_eq!(format_bytes(bytes), expected);
        }
    }

    proptest! {
        #[test]
        fn whole_amounts_survive_printing(count in 1u64..1000, shift in 0u32..5) {
            let bytes = count << (shift * 10);
            prop_assert_eq!(parse_bytes(&format_bytes(bytes)), Ok(bytes));
        }
    }
}
