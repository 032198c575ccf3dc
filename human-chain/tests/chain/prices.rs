//! Tests of votes on prices: their bounds, their rule, and what a member reads before the vote.

use crate::jobs::BOTH;
use crate::samples::prices;
use crate::support::{NOW, approve, check, circle, enact, policy, proposal, set_members, try_propose};
use human_chain::{CircleState, certify, class_of, render, render_difference, subject_of, verify};
use proptest::prelude::*;
use protocol::governance::{ActionClass, Change};
use protocol::usage::{PRICE_MICRO_UNITS_MAX, PriceVersion, Prices};

/// Returns the sample prices with one of the six replaced.
fn with(field: usize, price: u64) -> Prices {
    let mut asked = prices();
    let Prices {
        gpu_hour_micro_units: gpu,
        cpu_hour_micro_units: cpu,
        memory_gib_hour_micro_units: memory,
        storage_gib_hour_micro_units: storage,
        million_prompt_tokens_micro_units: prompt,
        million_generated_tokens_micro_units: generated,
    } = &mut asked;
    *[gpu, cpu, memory, storage, prompt, generated][field] = price;
    asked
}

/// Each price has its bound, in a proposal and in a certificate that careless members signed.
#[test]
fn each_price_is_bounded_when_it_is_asked_for_and_when_it_is_certified() {
    let state = circle();
    let most = PRICE_MICRO_UNITS_MAX;
    for (price, expected) in [
        (0, "approved"),
        (most, "approved"),
        (most + 1, "governance-invalid: 1000000000000001 millionths for the price"),
        (u64::MAX, "governance-invalid: accepted: at most 1000000000000000 for each"),
    ] {
        for field in 0..6 {
            let case = format!("{price} as number {field}");
            check(&case, try_propose(&state, Change::SetPrices(with(field, price))), expected);
            let mut signed = proposal(&state, Change::SetPrices(prices()));
            signed.change = Change::SetPrices(with(field, price));
            check(&case, verify(&state, &approve(&signed, &BOTH), NOW), expected);
        }
    }
}

/// Prices take the rule of sensitive changes: the quorum of routine ones sets none.
#[test]
fn attack_the_routine_quorum_sets_no_prices() {
    let mut state = circle();
    let members = state.members().cloned().collect();
    let stricter = policy("2 of (alice, bob, carol)", "3 of (alice, bob, carol)");
    let change = set_members(&state, members, stricter);
    enact(&mut state, change, &["alice", "bob", "carol"]);
    let change = Change::SetPrices(prices());
    assert_eq!((class_of(&change), subject_of(&change).as_str()), (ActionClass::Sensitive, "prices"));
    let asked = proposal(&state, change);
    for (who, expected) in [
        (&["alice"][..], "quorum-not-reached"),
        (&["alice", "bob"], "quorum-not-reached"),
        (&["alice", "bob", "carol"], "approved"),
    ] {
        let certificate = approve(&asked, who);
        check(&format!("{who:?}"), verify(&state, &certificate, NOW), expected);
        check(&format!("{who:?}"), certify(&state, &asked, &certificate.ballots), expected);
    }
    assert_eq!(state.prices(), PriceVersion { version: 0, prices: Prices::default() }, "none in force");
}

/// Attack: an approved vote comes again after a later one, or a vote that saw other prices than these.
#[test]
fn attack_a_vote_on_other_prices_is_stale() {
    let mut state = circle();
    let beside = proposal(&state, Change::SetPrices(with(0, 1)));
    check("the control", verify(&state, &approve(&beside, &BOTH), NOW), "approved");
    let first = enact(&mut state, Change::SetPrices(prices()), &BOTH);
    check("beside", verify(&state, &approve(&beside, &BOTH), NOW), "proposal-stale: prices");
    check("again", verify(&state, &first, NOW), "proposal-stale: prices");
    assert!(render_difference(&state, &beside).contains("made for another state of the circle"));
    enact(&mut state, Change::SetPrices(Prices::default()), &BOTH);
    assert_eq!(state.prices(), PriceVersion { version: 2, prices: Prices::default() });
    check("rolled back", verify(&state, &first, NOW), "proposal-stale: prices");
    let kept = CircleState::from_kept_bytes(&state.to_kept_bytes(), state.id()).expect("a sound state");
    assert_eq!(kept.prices().version, 2, "a vote for nothing is a vote");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Prices that differ in a millionth are read differently, also when two of them are exchanged.
    #[test]
    fn different_prices_have_different_texts(
        field in 0..3_usize, other in 0..3_usize, price in 0..=1_u64 << 40,
    ) {
        let state = circle();
        let shown = |prices: Prices| {
            let asked = proposal(&state, Change::SetPrices(prices));
            (render(&asked), render_difference(&state, &asked))
        };
        let (one, next) = (shown(with(field, price)), shown(with(field, price + 1)));
        prop_assert!(one.0 != next.0 && one.1 != next.1, "{}", one.1);
        let elsewhere = shown(with(other, price));
        prop_assert_eq!(with(field, price) == with(other, price), one.1 == elsewhere.1, "{}", one.1);
        prop_assert!(one.1.contains(&format!("{price} millionths")), "the exact number: {}", one.1);
    }
}
