//! What workers wrote last, per service. The leader's memory alone: bounded, gone with a change of leader.

use protocol::agent::WorkerLine;
use protocol::api::LogLine;
use protocol::{NodeName, ServiceName};
use std::collections::{BTreeMap, VecDeque};

/// Lines kept per service: some screens of what happened last.
const LINES_MAX: usize = 2000;
/// Services with lines kept; a service beyond them is not recorded.
const SERVICES_MAX: usize = 1024;

/// The last lines of every service.
#[derive(Debug, Default)]
pub(super) struct Logs {
    services: BTreeMap<ServiceName, Ring>,
}

#[derive(Debug, Default)]
struct Ring {
    next: u64,
    lines: VecDeque<LogLine>,
}

impl Logs {
    /// Keeps lines that a node sent.
    pub(super) fn append(&mut self, node: &NodeName, lines: Vec<WorkerLine>) {
        for line in lines {
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

    /// Lines of a service after a sequence number, oldest first, at most `limit`.
    #[must_use]
    pub(super) fn after(&self, service: &ServiceName, sequence: u64, limit: usize) -> Vec<LogLine> {
        let lines = self.services.get(service).map(|ring| &ring.lines);
        let wanted = lines.into_iter().flatten().filter(|line| line.sequence > sequence);
        wanted.take(limit).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::{Millis, SlotIndex};

    fn line(service: &str, text: &str) -> WorkerLine {
        let service = service.parse().expect("a name");
        WorkerLine { service, slot: SlotIndex(0), at: Millis(1), text: text.into() }
    }

    #[test]
    fn lines_come_back_in_order_and_only_the_newer_ones() {
        let (node, service) = ("node-1".parse().expect("a name"), "chat".parse().expect("a name"));
        let mut logs = Logs::default();
        logs.append(&node, vec![line("chat", "one"), line("other", "x"), line("chat", "two")]);
        let texts = |after| logs.after(&service, after, 10).into_iter().map(|l| l.text).collect::<Vec<_>>();
        assert_eq!(texts(0), ["one", "two"]);
        assert_eq!(texts(1), ["two"]);
        assert!(texts(2).is_empty());
    }

    #[test]
    fn a_flood_keeps_the_newest() {
        let (node, service) = ("node-1".parse().expect("a name"), "chat".parse().expect("a name"));
        let mut logs = Logs::default();
        for at in 0..LINES_MAX + 5 {
            logs.append(&node, vec![line("chat", &at.to_string())]);
        }
        let kept = logs.after(&service, 0, usize::MAX);
        assert_eq!((kept.len(), kept[0].text.as_str()), (LINES_MAX, "5"));
    }
}
