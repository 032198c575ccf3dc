//! Tests of slots that control names no more: which of them finish their requests, and which end at once.

use super::*;

/// Another node may hold the slot by now, because this one received nothing for a while.
#[test]
fn a_slot_that_control_names_no_more_finishes_its_requests_and_ends() {
    for newer in [None, Some(2)] {
        let (mut scene, bundle) = Scene::deployed(|_| {});
        scene.settle(&desired(&bundle, vec![scene.order(&bundle, 0, 1)], &[]));
        let orders = newer.iter().map(|fence| scene.order(&bundle, 0, *fence)).collect();
        let wanted = desired(&bundle, orders, &[]);
        assert_eq!(scene.names(&wanted), ["give-way 0"]);
        let actions = scene.plan(&wanted);
        scene.perform(actions);
        scene.now = NOW.plus(35_000);
        assert!(scene.names(&wanted).is_empty(), "its requests may take so long");
        scene.now = NOW.plus(35_001);
        assert_eq!(scene.names(&wanted), ["end 0"]);
    }
}

#[test]
fn a_slot_that_control_names_no_more_ends_at_once_where_nothing_may_finish() {
    type Plant = fn(&mut Scene, &Desired);
    let cases: [(&str, bool, Plant, &str); 5] = [
        ("the positive control", false, |_, _| {}, "give-way 0"),
        ("exclusive work", true, |_, _| {}, "end 0"),
        (
            "control drained it before",
            false,
            |scene, draining| {
                let actions = scene.plan(draining);
                scene.perform(actions);
            },
            "end 0",
        ),
        (
            "the node is removed",
            false,
            |scene, _| drop(scene.world.decide(Change::RemoveNode { node: "node-1".parse().unwrap() })),
            "end 0",
        ),
        ("it is held under another order", false, |scene, _| scene.book.forget(&key(0)), "end 0"),
    ];
    for (what, exclusive, plant, expected) in cases {
        let (mut scene, bundle) = Scene::deployed(|manifest| {
            let autonomy = if exclusive { limits::AUTONOMY_SECONDS_MIN } else { 3_600 };
            (manifest.exclusive, manifest.autonomy_seconds) = (exclusive, autonomy);
        });
        let orders = vec![scene.order(&bundle, 0, 1)];
        scene.settle(&desired(&bundle, orders.clone(), &[]));
        plant(&mut scene, &desired(&bundle, orders, &[0]));
        assert_eq!(scene.names(&desired(&bundle, vec![], &[])), [expected], "{what}");
    }
}

#[test]
fn attack_an_early_order_keeps_nothing_alive_that_the_circle_ended() {
    for (change, expected) in [
        (Change::RemoveNode { node: "node-1".parse().unwrap() }, "end 0"),
        (Change::Retire { service: "chat".parse().unwrap(), grace_seconds: 60 }, "drain 0"),
    ] {
        let (mut scene, bundle) = Scene::deployed(|_| {});
        let good = scene.order(&bundle, 0, 2);
        scene.settle(&desired(&bundle, vec![good], &[]));
        // Control states that decisions are missing, and names an order that one of them may approve.
        let newer = protocol::manifest::Manifest::Service(service("chat", root(), 3));
        let ahead = scene.world.certify(Change::Deploy(Box::new(newer)));
        let early = desired(&ahead, vec![scene.order(&ahead, 0, 4)], &[]);
        scene.chain_complete = false;
        assert!(scene.names(&early).is_empty(), "the worker runs on until the decision arrives");
        scene.world.decide(change);
        assert_eq!(scene.names(&early), [expected]);
    }
}
