//! Recent log lines of the workers, per service.
//!
//! The lines are in the leader's memory alone: they are bounded, and lost with a change of leader. Therefore
//! a page names its epoch.

use protocol::agent::WorkerLine;
use protocol::api::{LogLine, LogPage};
use protocol::{NodeId, NodeName, ServiceName};
use scheduler::Service;
use std::collections::{BTreeMap, VecDeque};

/// Maximum number of lines kept per service: a few screens.
const LINES_MAX: usize = 2000;
/// Maximum number of services with kept lines; further services are not recorded.
const SERVICES_MAX: usize = 1024;

/// The latest lines of every service.
#[derive(Debug, Default)]
pub(super) struct Logs {
    /// Raft term in which the lines were received.
    epoch: u64,
    services: BTreeMap<ServiceName, Ring>,
    /// Incarnation (`boot`) and number of each node's newest line. An agent whose request was interrupted
    /// does not know whether it arrived, and sends its lines again.
    newest: BTreeMap<NodeName, (u64, u64)>,
}

#[derive(Debug, Default)]
struct Ring {
    next: u64,
    lines: VecDeque<LogLine>,
}

/// Returns the lines that a node may send: those of slots that it holds or was the last to hold.
///
/// The last lines of a worker arrive after its slot is free. No other node may report lines of a service.
pub(super) fn of_holder(
    services: &BTreeMap<ServiceName, Service>,
    node: NodeId,
    lines: &[WorkerLine],
) -> Vec<WorkerLine> {
    let holds = |line: &&WorkerLine| {
        let slot = services.get(&line.service).and_then(|service| service.slots.get(&line.slot));
        slot.is_some_and(|slot| {
            let holder = slot.holding.as_ref().map(|holding| holding.order.node);
            holder == Some(node) || slot.last_holder == Some(node)
        })
    };
    lines.iter().filter(holds).cloned().collect()
}

impl Logs {
    /// Discards the lines of an earlier leadership, because the lines sent between the two were not received.
    fn start_epoch(&mut self, epoch: u64) {
        if self.epoch != epoch {
            *self = Self { epoch, ..Self::default() };
        }
    }

    /// Keeps the lines that a node sent to the leader of this term, each once.
    pub(super) fn append(&mut self, epoch: u64, node: &NodeName, boot: u64, lines: Vec<WorkerLine>) {
        self.start_epoch(epoch);
        let newest = self.newest.entry(node.clone()).or_default();
        if newest.0 != boot {
            *newest = (boot, 0);
        }
        for line in lines {
            if line.sequence <= newest.1 {
                continue;
            }
            newest.1 = line.sequence;
            if !self.services.contains_key(&line.service) && self.services.len() >= SERVICES_MAX {
                continue;
            }
            let ring = self.services.entry(line.service).or_default();
            ring.next += 1;
            ring.lines.push_back(LogLine {
                sequence: ring.next,
                at: line.at,
                node: node.clone(),
                slot: line.slot,
                text: line.text,
            });
            while ring.lines.len() > LINES_MAX {
                ring.lines.pop_front();
            }
        }
    }

    /// Returns lines of a service after a sequence number, oldest first, at most `limit`.
    pub(super) fn page(&mut self, epoch: u64, service: &ServiceName, after: u64, limit: usize) -> LogPage {
        self.start_epoch(epoch);
        let lines = self.services.get(service).map(|ring| &ring.lines);
        let wanted = lines.into_iter().flatten().filter(|line| line.sequence > after);
        LogPage { epoch, items: wanted.take(limit).cloned().collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::manifest::Manifest;
    use protocol::{Digest, Fence, Millis, PublicKey, SlotIndex};
    use scheduler::{ClusterTime, ServicePhase, Slot};

    fn line(service: &str, sequence: u64, text: &str) -> WorkerLine {
        let service = service.parse().expect("a name");
        WorkerLine { service, slot: SlotIndex(0), sequence, at: Millis(1), text: text.into() }
    }

    /// An agent with news interrupts its request and sends the same lines again, and so does an agent whose
    /// reply was lost. A new incarnation of the agent restarts the numbering.
    #[test]
    fn a_line_that_is_sent_again_is_kept_once() {
        let (node, service) = ("node-1".parse().expect("a name"), "chat".parse().expect("a name"));
        let mut logs = Logs::default();
        let [one, two] = [line("chat", 1, "one"), line("chat", 2, "two")];
        logs.append(1, &node, 7, vec![one.clone()]);
        logs.append(1, &node, 7, vec![one.clone(), two.clone()]);
        logs.append(1, &node, 7, vec![two.clone()]);
        logs.append(1, &node, 8, vec![line("chat", 1, "of its next life")]);
        logs.append(1, &"node-2".parse().expect("a name"), 7, vec![line("chat", 1, "of another")]);
        let texts: Vec<_> = logs.page(1, &service, 0, 10).items.into_iter().map(|line| line.text).collect();
        assert_eq!(texts, ["one", "two", "of its next life", "of another"]);
        // The leader of another term has received no lines yet.
        logs.append(2, &node, 8, vec![line("chat", 1, "of its next life")]);
        assert_eq!(logs.page(2, &service, 0, 10).items.len(), 1);
    }

    #[test]
    fn lines_come_back_in_order_and_only_the_newer_ones() {
        let (node, service) = ("node-1".parse().expect("a name"), "chat".parse().expect("a name"));
        let mut logs = Logs::default();
        logs.append(1, &node, 7, vec![line("chat", 1, "one"), line("other", 2, "x"), line("chat", 3, "two")]);
        let mut texts = |after| {
            let page = logs.page(1, &service, after, 10);
            page.items.into_iter().map(|line| line.text).collect::<Vec<_>>()
        };
        assert_eq!(texts(0), ["one", "two"]);
        assert_eq!(texts(1), ["two"]);
        assert!(texts(2).is_empty());
    }

    #[test]
    fn a_flood_of_lines_keeps_the_newest() {
        let (node, service) = ("node-1".parse().expect("a name"), "chat".parse().expect("a name"));
        let mut logs = Logs::default();
        for at in 0..LINES_MAX as u64 + 5 {
            logs.append(1, &node, 7, vec![line("chat", at + 1, &at.to_string())]);
        }
        let kept = logs.page(1, &service, 0, usize::MAX).items;
        assert_eq!((kept.len(), kept[0].text.as_str()), (LINES_MAX, "5"));
    }

    /// A replica that leads again did not receive the lines sent in between, so it starts empty in a new
    /// epoch.
    #[test]
    fn a_new_term_begins_an_empty_epoch() {
        let (node, service) = ("node-1".parse().expect("a name"), "chat".parse().expect("a name"));
        let mut logs = Logs::default();
        logs.append(3, &node, 7, vec![line("chat", 1, "one"), line("chat", 2, "two")]);
        assert_eq!(logs.page(3, &service, 0, 10).items.len(), 2);
        logs.append(5, &node, 7, vec![line("chat", 3, "three")]);
        let page = logs.page(5, &service, 0, 10);
        let lines: Vec<_> = page.items.iter().map(|line| (line.sequence, line.text.as_str())).collect();
        assert_eq!((page.epoch, lines), (5, vec![(1, "three")]));
        assert_eq!(
            logs.page(7, &service, 0, 10),
            LogPage { epoch: 7, items: vec![] },
            "nobody has spoken yet"
        );
    }

    #[test]
    fn a_node_sends_lines_only_for_slots_that_it_holds_or_held_last() {
        let id = |byte| NodeId(PublicKey([byte; 32]));
        let record = crate::testing::model_record("chat", "llama");
        let text = crate::cli::service_template(&"chat".parse().expect("a name"), &record, 1, 3);
        let Ok(Manifest::Service(manifest)) = Manifest::from_toml(&text) else { panic!("a service") };
        let certificate = Digest::of(b"certificate");
        let name = manifest.name.clone();
        let order = |node| protocol::order::SlotOrder {
            circle: protocol::CircleId(Digest::of(b"circle")),
            certificate,
            service: name.clone(),
            slot: SlotIndex(0),
            fence: Fence::new(1, 2),
            node,
            gpus: vec![],
            issued_at: Millis(1),
        };
        let holding = scheduler::Holding {
            order: order(id(1)),
            phase: scheduler::HoldingPhase::Running,
            replaces: None,
            failed_starts: 0,
        };
        let held = Slot {
            fence: Fence::new(1, 2),
            holding: Some(holding),
            since: ClusterTime(Millis(1)),
            last_holder: Some(id(2)),
            ..Slot::default()
        };
        let service = Service {
            manifest,
            certificate,
            version: 1,
            desired: 1,
            phase: ServicePhase::Active,
            slots: BTreeMap::from([(SlotIndex(0), held)]),
            avoid: BTreeMap::new(),
            before: None,
            roll_out: Default::default(),
        };
        let services = BTreeMap::from([(name.clone(), service)]);
        let lines = [line("chat", 1, "mine"), line("other", 2, "not mine")];
        for (node, expected) in [(id(1), vec!["mine"]), (id(2), vec!["mine"]), (id(3), vec![])] {
            let taken = of_holder(&services, node, &lines);
            let texts: Vec<&str> = taken.iter().map(|line| line.text.as_str()).collect();
            assert_eq!(texts, expected, "{node:?}");
        }
        let mut elsewhere = line("chat", 3, "another slot");
        elsewhere.slot = SlotIndex(1);
        assert!(of_holder(&services, id(1), &[elsewhere]).is_empty());
    }
}
