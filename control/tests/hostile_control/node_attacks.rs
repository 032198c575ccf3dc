//! Attacks on an agent. Each begins with a circle of its own; its positive control runs in the same scene, or
//! in another one in which the guard has nothing to go by.

use crate::Attack;
use crate::circle::{TestCircle, admission, desired, routed};
use crate::node::{BEGAN, Scene, node_id, small};
use human_chain::{FENCE_LEAP_MAX, MemberSecret, sign_wrap, verify_replay};
use model_store::{ModelKey, wrap_key};
use overlay::Identity;
use overlay::descriptors::channel;
use protocol::access::AccessRecord;
use protocol::gateway::{ApiKey, RouteTable, TableAccepted};
use protocol::governance::{Bundle, Change, HistoryHead};
use protocol::halt::HaltScope;
use protocol::manifest::{OnFailure, ServiceManifest};
use protocol::model::Recipient;
use protocol::order::{SignedOrder, SlotOrder};
use protocol::{Digest, Fence, ModelRoot, Signature, SlotIndex};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::{TcpListener, UnixListener};

const HOUR_MS: i64 = 3600 * 1000;
const DAY_MS: i64 = 24 * HOUR_MS;

pub(crate) async fn all() -> Vec<Attack> {
    vec![
        a_decision_left_out().await,
        a_claimed_head(true).await,
        a_claimed_head(false).await,
        a_replaced_approval().await,
        too_few_signatures().await,
        an_altered_certificate().await,
        a_wrap_that_no_member_made().await,
        a_route_to_an_unadmitted_node().await,
        a_key_that_no_member_granted().await,
        the_highest_fence().await,
        a_key_that_is_not_controls().await,
        an_altered_order().await,
        an_order_of_another_node().await,
        an_approval_of_the_past().await,
        slow_clocks().await,
        junk_with_each_answer().await,
        one_gpu_given_three_times().await,
        more_memory_than_there_is().await,
        junk_in_place_of_an_answer().await,
        a_forged_halt().await,
        a_halt_withheld_after_a_restart().await,
    ]
}

pub(crate) fn order(scene: &Scene, bundle: &Bundle, slot: u32, fence: u64) -> SignedOrder {
    scene.script().world.order(bundle, node_id(), slot, fence)
}

pub(crate) fn deploy(scene: &Scene, manifest: &ServiceManifest) -> Bundle {
    scene.script().world.deploy(manifest)
}

/// Returns the head that a circle's history would have after another decision.
pub(crate) fn head_after(world: &TestCircle, bundle: &Bundle) -> HistoryHead {
    let mut state = world.state.clone();
    state.advance(verify_replay(&state, &bundle.certificate).unwrap()).unwrap();
    state.head()
}

/// Control serves a new node the first version of a retired service and the node's own admission, and leaves
/// the retirement out.
async fn a_decision_left_out() -> Attack {
    let mut outcomes = Vec::new();
    for retired in [true, false] {
        let scene = Scene::before_admission();
        let first = deploy(&scene, &small("chat"));
        {
            let mut script = scene.script();
            if retired {
                let service = "chat".parse().unwrap();
                script.world.decide(Change::Retire { service, grace_seconds: 0 });
            }
            let admitted = script.world.decide(Change::AdmitNode(Box::new(scene.admission())));
            script.served = Some(vec![first.clone(), admitted]);
        }
        let agent = scene.start();
        outcomes.push(scene.try_order(&first, order(&scene, &first, 0, 1)).await);
        agent.stop().await;
    }
    let control = outcomes.pop().unwrap().is_ok();
    let attack = outcomes.pop().unwrap();
    Attack::refused(1, "a decision left out of a new node's history", attack, "node-not-admitted", control)
}

/// Control claims a shorter history than the node verified, or another one, and orders by it.
async fn a_claimed_head(shorter: bool) -> Attack {
    let scene = Scene::new();
    let bundles = [deploy(&scene, &small("chat")), deploy(&scene, &small("other"))];
    let agent = scene.start();
    scene.until_length(2).await;
    let claimed = match shorter {
        true => scene.script().world.heads[1],
        false => HistoryHead { size: 2, root: Digest::of(b"another history") },
    };
    scene.script().claimed = Some(claimed);
    let wanted = order(&scene, &bundles[0], 0, 1);
    let attack = scene.try_order(&bundles[0], wanted.clone()).await;
    scene.script().claimed = None;
    let control = scene.try_order(&bundles[0], order(&scene, &bundles[0], 0, 2)).await.is_ok();
    agent.stop().await;
    match shorter {
        true => Attack::refused(1, "a history that became shorter", attack, "history-shorter", control),
        false => Attack::refused(1, "another history of the circle", attack, "history-forked", control),
    }
}

/// Control orders a slot under an approval that the circle has replaced since, with slots that the newer one
/// takes away.
async fn a_replaced_approval() -> Attack {
    let scene = Scene::new();
    let first = deploy(&scene, &small("chat"));
    let agent = scene.start();
    let before = scene.try_order(&first, order(&scene, &first, 0, 1)).await.is_ok();
    let mut fewer = small("chat");
    fewer.replicas.max = 4;
    let second = deploy(&scene, &fewer);
    scene.until_length(2).await;
    let attack = scene.try_order(&first, order(&scene, &first, 5, 1)).await;
    let control = before && scene.try_order(&second, order(&scene, &second, 3, 1)).await.is_ok();
    agent.stop().await;
    Attack::refused(1, "an approval that the circle replaced", attack, "order-not-approved", control)
}

/// Control orders by a certificate that it made from an earlier state of the scene.
async fn by_certificate(forge: impl FnOnce(&mut Bundle)) -> (Result<(), String>, bool) {
    let scene = Scene::new();
    let whole = {
        let script = scene.script();
        let manifest = protocol::manifest::Manifest::Service(small("chat"));
        script.world.certify(Change::Deploy(Box::new(manifest)))
    };
    let mut forged = whole.clone();
    forge(&mut forged);
    let agent = scene.start();
    scene.until_length(0).await;
    scene.script().forced = Some(vec![forged.clone()]);
    let attack = scene.try_order(&forged, order(&scene, &forged, 0, 1)).await;
    {
        let mut script = scene.script();
        script.claimed = Some(head_after(&script.world, &whole));
        (script.forced, script.served) = (None, Some(vec![whole.clone()]));
    }
    let control = scene.try_order(&whole, order(&scene, &whole, 1, 1)).await.is_ok();
    agent.stop().await;
    (attack, control)
}

async fn too_few_signatures() -> Attack {
    let (attack, control) = by_certificate(|bundle| drop(bundle.certificate.ballots.pop())).await;
    Attack::refused(0, "a certificate under its quorum", attack, "quorum-not-reached", control)
}

async fn an_altered_certificate() -> Attack {
    let (attack, control) = by_certificate(|bundle| {
        let Change::Deploy(manifest) = &mut bundle.certificate.proposal.change else { unreachable!() };
        let protocol::manifest::Manifest::Service(service) = manifest.as_mut() else { unreachable!() };
        service.replicas.max += 1;
    })
    .await;
    Attack::refused(0, "a certificate that was altered", attack, "ballot-mismatch", control)
}

/// Control hands the node a key of its own choice as a model's, in a member's name. The positive control is
/// the wrap of a member, after which the load looks for the model's shards, which no store has.
async fn a_wrap_that_no_member_made() -> Attack {
    let scene = Scene::new();
    let bundle = deploy(&scene, &small("chat"));
    let to = scene.admission().encryption;
    let (forged, sound) = {
        let world = &scene.script().world;
        let wrap = || {
            let (key, root) = (ModelKey::generate().unwrap(), ModelRoot(Digest::of(b"model")));
            wrap_key(&key, &to, root, Recipient::Node(node_id())).unwrap()
        };
        let (thief, alice) = (MemberSecret::generate(&[66; 64]), world.founders[0].0.clone());
        (sign_wrap(&thief, alice, world.state.id(), &to, wrap()), world.sign_wrap(wrap(), &to))
    };
    let agent = scene.start();
    let mut outcomes = Vec::new();
    for (slot, wrap) in [(0, forged), (1, sound)] {
        scene.order(&bundle, vec![order(&scene, &bundle, slot, 1)]);
        scene.script().desired.assignments[0].wrap = Some(wrap);
        outcomes.push(scene.trouble(SlotIndex(slot)).await);
    }
    agent.stop().await;
    let control = outcomes.pop().unwrap() != "model-key-wrong";
    let attack = Err(outcomes.pop().unwrap());
    Attack::refused(3, "a model's key that no member wrapped", attack, "model-key-wrong", control)
}

/// Plays the gateway's process: accepts each table that the agent hands over.
async fn play_gateway(directory: &Path, tables: Arc<Mutex<Vec<RouteTable>>>) {
    let path = directory.join("gateway.sock");
    while !directory.exists() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let listener = UnixListener::bind(path).unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (mut sender, mut receiver) = channel(stream);
            while let Ok(Some((table, _))) = receiver.receive::<RouteTable>().await {
                let version = table.version;
                tables.lock().unwrap().push(table);
                if sender.send(&TableAccepted { version, workers: 0 }, &[]).await.is_err() {
                    break;
                }
            }
        }
    });
}

/// Control routes prompts to a node that the circle did not admit, and to a service that it did not approve.
async fn a_route_to_an_unadmitted_node() -> Attack {
    let workers = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let scene = Scene::with_gateway(workers.local_addr().unwrap().to_string());
    let chat = deploy(&scene, &small("chat"));
    let other = Identity::from_seed(&[66; 32]);
    let unadmitted = protocol::NodeId(other.public_key());
    let services =
        vec![routed("chat", &[(0, node_id()), (1, unadmitted)]), routed("evil", &[(0, node_id())])];
    {
        let mut script = scene.script();
        script.desired = desired(&chat, vec![], &[]);
        script.desired.routes = Some(RouteTable { version: 7, services: services.clone(), api_keys: vec![] });
    }
    let agent = scene.start_with(Some(scene.gateway_config(workers).await), None);
    let tables = Arc::<Mutex<Vec<RouteTable>>>::default();
    play_gateway(&scene.agent_directory(), tables.clone()).await;
    let handed = |services: &[protocol::gateway::RoutedService]| {
        tables.lock().unwrap().last().is_some_and(|table| table.services == services)
    };
    let covered = vec![routed("chat", &[(0, node_id())])];
    scene.until("the covered part is handed on", |_| handed(&covered)).await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    let leaks = |table: &RouteTable| table.services != covered;
    let has_effect = tables.lock().unwrap().iter().any(leaks);
    {
        let world = &mut scene.script().world;
        let encryption = MemberSecret::generate(&[66; 64]).public().encryption;
        world.decide(Change::AdmitNode(Box::new(admission("node-2", &other, encryption))));
        world.deploy(&small("evil"));
    }
    scene.until("all of it is handed on, once the circle covers it", |_| handed(&services)).await;
    agent.stop().await;
    Attack::without_effect(4, "prompts to an unadmitted node and service", has_effect, "not handed on", true)
}

/// Control makes API keys up: in its route table, and as grants of a member that it altered.
async fn a_key_that_no_member_granted() -> Attack {
    let workers = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let scene = Scene::with_gateway(workers.local_addr().unwrap().to_string());
    let chat = deploy(&scene, &small("chat"));
    let made_up = ApiKey {
        name: "control".parse().unwrap(),
        hash: Digest::of(b"of control"),
        services: None,
        requests_per_minute: None,
    };
    let (sound, altered) = {
        let mut script = scene.script();
        let sound = script.world.sign_grant(script.world.key_grant("app"));
        let mut altered = sound.clone();
        altered.grant.secret = Digest::of(b"of control");
        let services = vec![routed("chat", &[(0, node_id())])];
        script.desired = desired(&chat, vec![], &[]);
        script.desired.routes = Some(RouteTable { version: 7, services, api_keys: vec![made_up] });
        script.access = vec![AccessRecord::Grant(altered.clone())];
        (sound, altered)
    };
    let agent = scene.start_with(Some(scene.gateway_config(workers).await), None);
    let tables = Arc::<Mutex<Vec<RouteTable>>>::default();
    play_gateway(&scene.agent_directory(), tables.clone()).await;
    scene.until("a table is handed on", |_| !tables.lock().unwrap().is_empty()).await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    let has_effect = tables.lock().unwrap().iter().any(|table| !table.api_keys.is_empty());
    scene.script().access = vec![AccessRecord::Grant(altered), AccessRecord::Grant(sound.clone())];
    let passes = || {
        let tables = tables.lock().unwrap();
        let keys = tables.last().map(|table| table.api_keys.as_slice()).unwrap_or_default();
        keys.iter().map(|key| key.hash).eq([sound.grant.secret])
    };
    scene.until("a member's own grant is handed on", |_| passes()).await;
    agent.stop().await;
    Attack::without_effect(4, "API keys that no member granted", has_effect, "not handed on", true)
}

/// One order with the highest fence of all once blocked a slot for the node's life.
async fn the_highest_fence() -> Attack {
    let scene = Scene::new();
    let bundle = deploy(&scene, &small("chat"));
    let agent = scene.start();
    let attack = scene.try_order(&bundle, order(&scene, &bundle, 0, u64::MAX)).await;
    // The slot is not blocked: the next honest count is accepted, and so is the farthest leap that passes.
    let control = scene.try_order(&bundle, order(&scene, &bundle, 0, 1)).await.is_ok()
        && scene.try_order(&bundle, order(&scene, &bundle, 1, FENCE_LEAP_MAX)).await.is_ok();
    agent.stop().await;
    Attack::refused(5, "an order with the highest fence", attack, "order-mismatch", control)
}

/// Lets control send an order that is not one, then an honest one.
async fn by_order(forge: impl FnOnce(&Scene, SlotOrder) -> SignedOrder) -> (Result<(), String>, bool) {
    let scene = Scene::new();
    let bundle = deploy(&scene, &small("chat"));
    let agent = scene.start();
    let plain = scene.script().world.plain_order(&bundle, node_id(), 0, 1);
    let forged = forge(&scene, plain);
    let attack = scene.try_order(&bundle, forged).await;
    let control = scene.try_order(&bundle, order(&scene, &bundle, 1, 1)).await.is_ok();
    agent.stop().await;
    (attack, control)
}

async fn a_key_that_is_not_controls() -> Attack {
    let (attack, control) = by_order(|scene, order| {
        let honest = scene.script().world.sign(0, order);
        let thief = Identity::from_seed(&[66; 32]);
        let bytes = protocol::canonical::to_bytes(&honest.order);
        let signature = thief.sign(protocol::order::ORDER_DOMAIN, &bytes);
        SignedOrder { signer: thief.public_key(), signature, ..honest }
    })
    .await;
    Attack::refused(0, "an order by a key that is not control's", attack, "order-signature-invalid", control)
}

async fn an_altered_order() -> Attack {
    let (attack, control) = by_order(|scene, order| {
        let honest = scene.script().world.sign(0, order);
        SignedOrder { signature: Signature([0; 64]), ..honest }
    })
    .await;
    Attack::refused(0, "an order without a signature", attack, "order-signature-invalid", control)
}

async fn an_order_of_another_node() -> Attack {
    let (attack, control) = by_order(|scene, order| {
        let node = protocol::NodeId(Identity::from_seed(&[66; 32]).public_key());
        scene.script().world.sign(0, SlotOrder { node, ..order })
    })
    .await;
    Attack::refused(0, "an order of another node", attack, "order-mismatch", control)
}

/// Control runs the approval that was replaced, with a fence of the one in force. The positive control is a
/// certificate that names it to return to.
async fn an_approval_of_the_past() -> Attack {
    let mut outcomes = Vec::new();
    for on_failure in [OnFailure::Hold, OnFailure::Return] {
        let scene = Scene::new();
        let first = deploy(&scene, &small("chat"));
        let mut next = small("chat");
        next.rollout.on_failure = on_failure;
        deploy(&scene, &next);
        let agent = scene.start();
        scene.until_length(2).await;
        let order = {
            let world = &scene.script().world;
            let order = world.plain_order(&first, node_id(), 0, 1);
            world.sign(0, SlotOrder { fence: Fence::new(2, 1), ..order })
        };
        outcomes.push(scene.try_order(&first, order).await);
        agent.stop().await;
    }
    let control = outcomes.pop().unwrap().is_ok();
    let attack = outcomes.pop().unwrap();
    Attack::refused(0, "an approval that was replaced", attack, "order-not-approved", control)
}

/// The clocks of all control replicas fall behind, so that an approval that has ended seems valid.
async fn slow_clocks() -> Attack {
    let mut outcomes = Vec::new();
    for own_clock_too in [false, true] {
        let scene = Scene::new();
        let valid_until = Some(BEGAN.plus(HOUR_MS as u64));
        let bundle = deploy(&scene, &ServiceManifest { valid_until, ..small("chat") });
        // It is a day later now, and one of the clocks shows it at most.
        if !own_clock_too {
            scene.clock.step_wall(DAY_MS);
            scene.control_clock.step_wall(DAY_MS);
        }
        let agent = scene.start();
        scene.until_length(1).await;
        scene.control_clock.step_wall(if own_clock_too { 0 } else { -DAY_MS });
        tokio::time::sleep(Duration::from_secs(5)).await;
        outcomes.push(scene.try_order(&bundle, order(&scene, &bundle, 0, 1)).await);
        agent.stop().await;
    }
    // The positive control: no clock knows that the approval has ended.
    let control = outcomes.pop().unwrap().is_ok();
    let attack = outcomes.pop().unwrap();
    Attack::refused(6, "clocks turned back to before an expiry", attack, "order-not-approved", control)
}

/// Control holds an approved certificate back until it has expired, and keeps the node's mark of freshness
/// old with junk in each answer.
async fn junk_with_each_answer() -> Attack {
    let mut outcomes = Vec::new();
    for offline in [false, true] {
        let scene = Scene::new();
        deploy(&scene, &small("chat"));
        let withheld = {
            let script = scene.script();
            let manifest = protocol::manifest::Manifest::Service(small("evil"));
            script.world.certify(Change::Deploy(Box::new(manifest)))
        };
        let mut junk = withheld.clone();
        junk.certificate.ballots.pop();
        let agent = scene.start();
        scene.until_length(1).await;
        {
            let mut script = scene.script();
            (script.forced, script.silent) = (Some(vec![junk]), offline);
        }
        tokio::time::sleep(Duration::from_secs(10)).await;
        // Forty days pass, until the node has asked each replica for its clock again.
        scene.clock.step_wall(40 * DAY_MS);
        scene.control_clock.step_wall(40 * DAY_MS);
        tokio::time::sleep(Duration::from_secs(150)).await;
        {
            let mut script = scene.script();
            let served = script.world.bundles.iter().chain([&withheld]).cloned().collect();
            script.claimed = Some(head_after(&script.world, &withheld));
            (script.forced, script.served, script.silent) = (None, Some(served), false);
        }
        outcomes.push(scene.try_order(&withheld, order(&scene, &withheld, 0, 1)).await);
        agent.stop().await;
    }
    // The positive control: a node that was offline cannot know that the certificate comes too late.
    let control = outcomes.pop().unwrap().is_ok();
    let attack = outcomes.pop().unwrap();
    Attack::refused(6, "an expired certificate behind junk", attack, "proposal-expired", control)
}

/// Control gives one whole GPU to three slots.
async fn one_gpu_given_three_times() -> Attack {
    let scene = Scene::new();
    let mut manifest = small("chat");
    manifest.resources.gpu_count = 1;
    let bundle = deploy(&scene, &manifest);
    let on_gpu = |slot: u32, gpu: u32| {
        let script = scene.script();
        let plain = script.world.plain_order(&bundle, node_id(), slot, 1);
        script.world.sign(0, SlotOrder { gpus: vec![gpu], ..plain })
    };
    let agent = scene.start();
    scene.order(&bundle, vec![on_gpu(0, 0), on_gpu(1, 0), on_gpu(2, 0)]);
    let fence = Fence::new(1, 1);
    let first = scene.outcome(SlotIndex(0), fence).await;
    let second = scene.outcome(SlotIndex(1), fence).await;
    let attack = second.and(scene.outcome(SlotIndex(2), fence).await);
    scene.order(&bundle, vec![on_gpu(0, 0), on_gpu(3, 1)]);
    let control = first.is_ok() && scene.outcome(SlotIndex(3), fence).await.is_ok();
    agent.stop().await;
    Attack::refused(8, "one GPU given to three slots", attack, "resources-exceeded", control)
}

/// Control orders two slots of 600 MiB on a node that offers 1 GiB.
async fn more_memory_than_there_is() -> Attack {
    let scene = Scene::new();
    let mut manifest = small("chat");
    manifest.resources.memory_bytes = 600 << 20;
    manifest.resources.cpu_millicores = 50;
    let bundle = deploy(&scene, &manifest);
    let agent = scene.start();
    scene.order(&bundle, vec![order(&scene, &bundle, 0, 1), order(&scene, &bundle, 1, 1)]);
    let fence = Fence::new(1, 1);
    let control = scene.outcome(SlotIndex(0), fence).await.is_ok();
    let attack = scene.outcome(SlotIndex(1), fence).await;
    agent.stop().await;
    Attack::refused(8, "more memory than there is", attack, "resources-exceeded", control)
}

/// Control sends the largest answers that a node reads, and larger ones, without any meaning.
async fn junk_in_place_of_an_answer() -> Attack {
    let scene = Scene::new();
    let bundle = deploy(&scene, &small("chat"));
    let agent = scene.start();
    scene.until_length(1).await;
    let most = protocol::limits::SYNC_BYTES_MAX;
    for (byte, length) in [(0x81_u8, most), (0x00, most), (0xbf, most), (0x00, most + 1), (0xff, 0)] {
        scene.script().raw = Some(vec![byte; length].into());
        scene.script().last = None;
        scene.until("the agent asks again", |script| script.last.is_some()).await;
    }
    scene.script().raw = None;
    let control = scene.try_order(&bundle, order(&scene, &bundle, 0, 1)).await.is_ok();
    agent.stop().await;
    Attack::without_effect(
        9,
        "16 MiB of junk in place of an answer",
        !control,
        "refused, and asked again",
        control,
    )
}

/// Control makes halts up in members' names.
async fn a_forged_halt() -> Attack {
    let scene = Scene::new();
    let bundle = deploy(&scene, &small("chat"));
    let agent = scene.start();
    let (forged, own) = {
        let mut script = scene.script();
        let thief = MemberSecret::generate(&[66; 64]);
        let mut forged = script.world.halt_by("alice", &thief, HaltScope::Circle, 1);
        forged.halt.signer = script.world.halt(0, HaltScope::Circle, 2).halt.signer;
        let halts = [forged.clone(), script.world.halt_by("mallory", &thief, HaltScope::Circle, 3)];
        script.halts = halts.into();
        (forged, script.world.halt(0, HaltScope::Circle, 4))
    };
    tokio::time::sleep(Duration::from_secs(5)).await;
    let has_effect = scene.try_order(&bundle, order(&scene, &bundle, 0, 1)).await.is_err();
    scene.script().halts = vec![forged, own];
    tokio::time::sleep(Duration::from_secs(5)).await;
    let halted = scene.try_order(&bundle, order(&scene, &bundle, 1, 1)).await;
    agent.stop().await;
    let control = halted == Err("halted".into());
    Attack::without_effect(12, "a halt that no member signed", has_effect, "signature-invalid", control)
}

/// Control withholds a halt from the successor of the agent that took it.
async fn a_halt_withheld_after_a_restart() -> Attack {
    let scene = Scene::new();
    let bundle = deploy(&scene, &small("chat"));
    let agent = scene.start();
    scene.until_length(1).await;
    let control = scene.try_order(&bundle, order(&scene, &bundle, 0, 1)).await.is_ok();
    {
        let mut script = scene.script();
        script.halts = vec![script.world.halt(0, HaltScope::Circle, 1)];
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    agent.kill().await;
    scene.script().halts.clear();
    let agent = scene.start();
    let attack = scene.try_order(&bundle, order(&scene, &bundle, 1, 1)).await;
    agent.stop().await;
    Attack::refused(12, "a halt withheld after a restart", attack, "halted", control)
}
