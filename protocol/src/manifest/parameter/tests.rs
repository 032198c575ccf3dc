//! Tests of parameters: each rule accepts exactly its values, and a placeholder is replaced once.

use super::*;
use proptest::prelude::*;

fn decimal(text: &str) -> Decimal {
    text.parse().expect("a decimal number")
}

fn text(characters: TextCharacters) -> ParameterRule {
    ParameterRule::Text { length: 8, characters }
}

#[test]
fn a_rule_accepts_exactly_its_values() {
    let integer = ParameterRule::Integer { least: -5, most: 100 };
    let rate = ParameterRule::Decimal { least: decimal("0.0001"), most: decimal("1") };
    let mode = ParameterRule::Choice(vec!["fast".into(), "--slow".into()]);
    for (rule, accepted, refused) in [
        (integer, "-5 0 100", "-6 101 +1 01 -0 1.0 1e2 0x1 100000000000000000000 $(id) ١"),
        (rate, "0.0001 1 0.5 0.50 1.000000000", "0 0.00009 1.000000001 .5 1. 1e-4 -0.5 00.5 0.0000000001"),
        (mode, "fast --slow", "slow fas faster FAST"),
        (text(TextCharacters::Word), "run-1 a.b_c ... 12345678", "-v .. 123456789 a/b a;b a\u{0}b ä a|b"),
        (text(TextCharacters::Path), "/a/b a/..b ..a", "../a a/../b /.. -/a a;b"),
        (text(TextCharacters::Printable), "$(id);|& {x} \"'", "-x a\tb a\u{7f} ä"),
    ] {
        assert_eq!(rule.check(), Ok(()));
        for value in accepted.split(' ') {
            assert_eq!(rule.accept(value), Ok(()), "{rule:?}: {value}");
        }
        for value in refused.split(' ').chain(["", "a\nb"]) {
            assert!(rule.accept(value).is_err(), "{rule:?}: {value}");
        }
    }
    assert_eq!(text(TextCharacters::Printable).accept("a b"), Ok(()));
}

#[test]
fn a_rule_that_accepts_nothing_is_refused() {
    let words = |words: &[&str]| ParameterRule::Choice(words.iter().map(ToString::to_string).collect());
    let characters = TextCharacters::Word;
    for (rule, expected) in [
        (ParameterRule::Integer { least: 2, most: 1 }, "least is 2, more than 1"),
        (ParameterRule::Decimal { least: decimal("0.2"), most: decimal("0.10") }, "more than 0.10"),
        (words(&[]), "has 0 words"),
        (words(&["a"; 65]), "has 65 words"),
        (words(&["a", "a"]), "twice"),
        (words(&["a", ""]), "1 to 1024 bytes"),
        (words(&["a\n"]), "printable"),
        (ParameterRule::Text { length: 0, characters }, "length is 0; accepted: 1 to 1024"),
        (ParameterRule::Text { length: 1025, characters }, "length is 1025"),
    ] {
        let error = rule.check().expect_err(expected);
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn placeholders_are_replaced_once() {
    let value_of = |name: &str| match name {
        "steps" => Some("100"),
        "text" => Some("{steps} }} $(id) ; --x"),
        _ => None,
    };
    for (argument, expected) in [
        ("", Ok("")),
        ("--steps", Ok("--steps")),
        ("{steps}", Ok("100")),
        ("--steps={steps}x{steps}", Ok("--steps=100x100")),
        ("{text}", Ok("{steps} }} $(id) ; --x")),
        ("{{steps}}", Ok("{steps}")),
        ("{{\"a\": {steps}}}", Ok("{\"a\": 100}")),
        ("{other}", Err("names `{other}`, which is no parameter")),
        ("{}", Err("names `{}`, which is no parameter")),
        ("{steps", Err("a brace alone")),
        ("steps}", Err("a brace alone")),
        ("{a{steps}", Err("which is no parameter")),
    ] {
        match (expand_argument(argument, value_of), expected) {
            (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{argument}"),
            (Err(found), Err(expected)) => assert!(found.contains(expected), "{argument}: {found}"),
            (found, expected) => panic!("{argument}: {found:?}, not {expected:?}"),
        }
    }
}

proptest! {
    /// A decimal is ordered as its digits are.
    #[test]
    fn decimals_are_compared_exactly(left in -1_000_000_000_i64..1_000_000_000, right in any::<i32>()) {
        let right = i64::from(right);
        let write = |billionths: i64| {
            let (sign, size) = (if billionths < 0 { "-" } else { "" }, billionths.unsigned_abs());
            decimal(&format!("{sign}{}.{:09}", size / 1_000_000_000, size % 1_000_000_000))
        };
        prop_assert_eq!(write(left).billionths(), left);
        let rule = ParameterRule::Decimal { least: write(left), most: write(left) };
        prop_assert_eq!(rule.accept(write(right).as_str()).is_ok(), left == right);
    }

    /// No value makes two arguments of one, and no text outside of the placeholder changes.
    #[test]
    fn a_value_stays_where_its_placeholder_was(value in ".{0,20}", before in "[a-z= ]{0,5}") {
        let expanded = expand_argument(&format!("{before}{{x}}"), |_| Some(value.as_str()));
        prop_assert_eq!(expanded, Ok(format!("{before}{value}")));
    }

    #[test]
    fn any_text_is_accepted_or_refused(text in ".{0,40}") {
        let _ = expand_argument(&text, |_| Some("x"));
        if let Ok(decimal) = text.parse::<Decimal>() {
            prop_assert_eq!(String::from(decimal), text);
        }
    }
}
