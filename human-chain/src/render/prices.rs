//! Prices in words: absolute in the change that sets them, and beside the present ones in its difference.

use super::fields::FieldTexts;
use protocol::usage::Prices;

/// Returns the sentence of new prices.
pub(super) fn sentence(prices: &Prices) -> String {
    let hours = [
        (prices.gpu_hour_micro_units, "a GPU"),
        (prices.cpu_hour_micro_units, "a core"),
        (prices.memory_gib_hour_micro_units, "a GiB of memory"),
        (prices.storage_gib_hour_micro_units, "a GiB of storage"),
    ];
    let hours = hours.map(|(price, what)| format!("{} for an hour of {what}", units(price))).join(", ");
    format!(
        "Bill usage from now on at {hours}, {} for a million tokens of prompts and {} for a million \
         generated tokens; what was used before keeps its prices.",
        units(prices.million_prompt_tokens_micro_units),
        units(prices.million_generated_tokens_micro_units),
    )
}

/// Returns the fields of prices.
pub(super) fn fields(prices: &Prices) -> FieldTexts {
    let text = |price: u64| format!("{price} millionths ({})", units(price));
    prices.named().map(|(name, price)| (format!("prices.{name}"), text(price))).into()
}

/// Returns the fields of new prices, each with its difference from the present one.
pub(super) fn compared(present: &Prices, asked: &Prices) -> FieldTexts {
    let mut texts = fields(asked);
    for ((text, (_, new)), (_, old)) in texts.iter_mut().zip(asked.named()).zip(present.named()) {
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
