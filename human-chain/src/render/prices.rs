//! Prices in words: absolute in the change that sets them, and beside the present ones in its difference.

use super::fields::FieldTexts;
use protocol::usage::Prices;

/// Returns the sentence of new prices.
pub(super) fn sentence(prices: &Prices) -> String {
    let Prices { gpu_hour_micro_units, cpu_hour_micro_units, memory_gib_hour_micro_units } = prices;
    format!(
        "Bill usage from now on at {} for an hour of a GPU, {} for an hour of a core and {} for an hour of a \
         GiB of memory; what was used before keeps its prices.",
        units(*gpu_hour_micro_units),
        units(*cpu_hour_micro_units),
        units(*memory_gib_hour_micro_units),
    )
}

/// Returns the fields of prices.
pub(super) fn fields(prices: &Prices) -> FieldTexts {
    let text = |price: u64| format!("{price} millionths ({})", units(price));
    named(prices).map(|(name, price)| (name.into(), text(price))).into()
}

/// Returns the fields of new prices, each with its difference from the present one.
pub(super) fn compared(present: &Prices, asked: &Prices) -> FieldTexts {
    let mut texts = fields(asked);
    for ((text, (_, new)), (_, old)) in texts.iter_mut().zip(named(asked)).zip(named(present)) {
        let sign = if new < old { "-" } else { "+" };
        if new != old {
            text.1.push_str(&format!(", {sign}{} millionths{}", new.abs_diff(old), percent(old, new)));
        }
    }
    texts
}

/// Returns the change in percent, rounded down to tenths; nothing if the present price is 0.
fn percent(old: u64, new: u64) -> String {
    let tenths = u128::from(new.abs_diff(old)) * 1000;
    let Some(tenths) = tenths.checked_div(u128::from(old)) else { return String::new() };
    let sign = if new < old { "-" } else { "+" };
    format!(", {sign}{}.{} %", tenths / 10, tenths % 10)
}

fn named(prices: &Prices) -> [(&'static str, u64); 3] {
    let Prices { gpu_hour_micro_units, cpu_hour_micro_units, memory_gib_hour_micro_units } = prices;
    [
        ("prices.hour of a GPU", *gpu_hour_micro_units),
        ("prices.hour of a core", *cpu_hour_micro_units),
        ("prices.hour of a GiB of memory", *memory_gib_hour_micro_units),
    ]
}

/// Returns millionths as a decimal number of units.
fn units(millionths: u64) -> String {
    let text = format!("{}.{:06}", millionths / 1_000_000, millionths % 1_000_000);
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "1" { "1 unit".into() } else { format!("{text} units") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_price_is_shown_as_a_decimal_and_never_rounded() {
        for (millionths, expected) in [
            (0, "0 units"),
            (1, "0.000001 units"),
            (1_000_000, "1 unit"),
            (2_500_000, "2.5 units"),
            (10_000_000, "10 units"),
        ] {
            assert_eq!(units(millionths), expected);
        }
    }

    #[test]
    fn a_difference_is_absolute_and_in_percent() {
        let price = |gpu| Prices { gpu_hour_micro_units: gpu, ..Prices::default() };
        let text = |old, new| compared(&price(old), &price(new))[0].1.clone();
        assert_eq!(text(2_000_000, 2_500_000), "2500000 millionths (2.5 units), +500000 millionths, +25.0 %");
        assert_eq!(text(3, 1), "1 millionths (0.000001 units), -2 millionths, -66.6 %");
        assert_eq!(text(0, 7), "7 millionths (0.000007 units), +7 millionths");
        assert_eq!(text(7, 7), "7 millionths (0.000007 units)");
    }
}
