//! Max-min fair byte budget: divides memory between requests among keys. Pure: no clock, no lock, no waiting.

use std::collections::BTreeMap;

/// Identifier of a request, in order of arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct RequestId(u64);

/// Decision on a request for more bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChargeDecision {
    /// The bytes are granted.
    Admit,
    /// Requests under eviction will release enough; retry then.
    Wait,
    /// Evict this request, then retry.
    Evict(RequestId),
    /// The budget is full, and no other key holds more.
    Reject,
}

/// Bytes held by requests, and by keys.
#[derive(Debug)]
pub(crate) struct ByteBudget<K> {
    bytes_max: usize,
    used: usize,
    /// Part of `used` held by requests under eviction.
    evicting: usize,
    next: u64,
    requests: BTreeMap<RequestId, RequestHolding<K>>,
    /// Bytes of each key's requests that are not under eviction; no entry is zero.
    keys: BTreeMap<K, usize>,
}

#[derive(Debug)]
struct RequestHolding<K> {
    key: K,
    bytes: usize,
    is_evicted: bool,
}

impl<K: Ord + Clone> ByteBudget<K> {
    /// Creates an empty budget.
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self { bytes_max, used: 0, evicting: 0, next: 0, requests: BTreeMap::new(), keys: BTreeMap::new() }
    }

    /// Returns the bytes held, including those of requests under eviction.
    pub(crate) fn used(&self) -> usize {
        self.used
    }

    /// Reports whether less than a quarter of the bytes is free: what is merely useful is then not held.
    pub(crate) fn is_scarce(&self) -> bool {
        self.used > self.bytes_max / 4 * 3
    }

    /// Opens a request of this key.
    pub(crate) fn open(&mut self, key: K) -> RequestId {
        let id = RequestId(self.next);
        self.next += 1;
        self.requests.insert(id, RequestHolding { key, bytes: 0, is_evicted: false });
        id
    }

    /// Requests `bytes` more.
    pub(crate) fn grow(&mut self, id: RequestId, bytes: usize) -> ChargeDecision {
        let Some(holding) = self.requests.get_mut(&id).filter(|holding| !holding.is_evicted) else {
            return ChargeDecision::Reject;
        };
        if bytes <= self.bytes_max - self.used {
            holding.bytes += bytes;
            self.used += bytes;
            *self.keys.entry(holding.key.clone()).or_default() += bytes;
            assert!(self.used <= self.bytes_max, "never more than the budget");
            return ChargeDecision::Admit;
        }
        if bytes <= self.bytes_max.saturating_sub(self.used - self.evicting) {
            return ChargeDecision::Wait;
        }
        let key = holding.key.clone();
        match self.largest_holder() {
            // Evict only from a key that holds more even after this growth, so that two equal keys never
            // evict each other.
            Some(largest)
                if *largest != key && self.bytes_of_key(largest) > self.bytes_of_key(&key) + bytes =>
            {
                let largest = largest.clone();
                self.evict_from(&largest)
            }
            _ => ChargeDecision::Reject,
        }
    }

    /// Releases all but `bytes`.
    pub(crate) fn shrink_to(&mut self, id: RequestId, bytes: usize) {
        let Some(holding) = self.requests.get_mut(&id) else { return };
        let given_back = holding.bytes.saturating_sub(bytes);
        assert!(given_back <= self.used, "a request releases no more than is held");
        holding.bytes -= given_back;
        self.used -= given_back;
        if holding.is_evicted {
            self.evicting -= given_back;
            return;
        }
        let key = holding.key.clone();
        self.take_from_key(&key, given_back);
    }

    /// Removes a request that has ended.
    pub(crate) fn close(&mut self, id: RequestId) {
        self.shrink_to(id, 0);
        self.requests.remove(&id);
    }

    fn bytes_of_key(&self, key: &K) -> usize {
        self.keys.get(key).copied().unwrap_or(0)
    }

    fn take_from_key(&mut self, key: &K, bytes: usize) {
        let Some(held) = self.keys.get_mut(key) else { return };
        assert!(bytes <= *held, "a key releases no more than it holds");
        *held -= bytes;
        if *held == 0 {
            self.keys.remove(key);
        }
    }

    fn largest_holder(&self) -> Option<&K> {
        self.keys.iter().max_by_key(|(_, bytes)| **bytes).map(|(key, _)| key)
    }

    /// Evicts the key's largest request, the newest of equals: it has the least to lose.
    fn evict_from(&mut self, key: &K) -> ChargeDecision {
        let bytes_of_key =
            self.requests.iter_mut().filter(|(_, holding)| holding.key == *key && !holding.is_evicted);
        let Some((id, holding)) = bytes_of_key.max_by_key(|(id, holding)| (holding.bytes, **id)) else {
            return ChargeDecision::Reject;
        };
        holding.is_evicted = true;
        let (id, bytes) = (*id, holding.bytes);
        self.evicting += bytes;
        self.take_from_key(key, bytes);
        ChargeDecision::Evict(id)
    }

    #[cfg(test)]
    fn check_invariants(&self) {
        assert!(self.used <= self.bytes_max, "never more than the budget");
        let held: usize = self.requests.values().map(|holding| holding.bytes).sum();
        assert_eq!(held, self.used);
        let evicting = self.requests.values().filter(|holding| holding.is_evicted);
        assert_eq!(evicting.map(|holding| holding.bytes).sum::<usize>(), self.evicting);
        assert_eq!(self.keys.values().sum::<usize>(), self.used - self.evicting);
        assert!(self.keys.values().all(|bytes| *bytes > 0), "no key without bytes is remembered");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Runs a script against a budget of 100 bytes: `a1+50` makes request 1 of key `a` request 50 bytes,
    /// `a1=20` release all but 20, `a1.` end. Returns the decisions in order.
    fn script(text: &str) -> Vec<String> {
        let mut budget = ByteBudget::new(100);
        let mut requests: BTreeMap<String, RequestId> = BTreeMap::new();
        let mut outcomes = Vec::new();
        for step in text.split_whitespace() {
            let (name, rest) = step.split_at(2);
            let id = *requests.entry(name.to_owned()).or_insert_with(|| budget.open(name[..1].to_owned()));
            match rest.split_at(1) {
                ("+", bytes) => {
                    let outcome = match budget.grow(id, bytes.parse().expect("a number")) {
                        ChargeDecision::Admit => "admit".to_owned(),
                        ChargeDecision::Wait => "wait".to_owned(),
                        ChargeDecision::Reject => "reject".to_owned(),
                        ChargeDecision::Evict(other) => {
                            let name = requests.iter().find(|(_, known)| **known == other);
                            format!("evict-{}", name.expect("a request of the script").0)
                        }
                    };
                    outcomes.push(outcome);
                }
                ("=", bytes) => budget.shrink_to(id, bytes.parse().expect("a number")),
                _ => budget.close(id),
            }
            budget.check_invariants();
        }
        outcomes
    }

    #[test]
    fn bytes_go_to_the_key_that_holds_least() {
        for (steps, expected) in [
            ("a1+60 a2+40 a3+1", "admit admit reject"),
            ("a1+60 b1+40 a2+1 b2+1", "admit admit reject evict-a1"),
            ("a1+60 a2+40 b1+1", "admit admit evict-a1"),
            ("a1+60 a2+40 b1+1 b1+1 a1. b1+1", "admit admit evict-a1 wait admit"),
            ("a1+60 a2+40 b1+61 b1+60", "admit admit evict-a1 wait"),
            ("a1+40 a2+60 b1+10", "admit admit evict-a2"),
            ("a1+50 a2+50 b1+10", "admit admit evict-a2"),
            ("a1+50 b1+50 a2+1 b2+1", "admit admit reject reject"),
            ("a1+50 b1+50 c1+50 c1+49", "admit admit reject evict-b1"),
            ("a1+100 b1+101", "admit reject"),
            ("a1+100 a1=10 b1+90", "admit admit"),
            ("a1+100 b1+40 a1+1", "admit evict-a1 reject"),
            ("a1+100 b1+40 a1=70 b1+40", "admit evict-a1 wait"),
            ("a1+100 b1+40 a1=60 b1+40 c1+10", "admit evict-a1 admit wait"),
            ("a1+34 b1+33 c1+33 d1+16 d1+32", "admit admit admit evict-a1 wait"),
        ] {
            assert_eq!(script(steps).join(" "), expected, "{steps}");
        }
    }

    proptest! {
        #[test]
        fn the_accounts_balance_and_a_key_below_its_share_is_never_rejected(
            steps in proptest::collection::vec((0u8..4, 0u8..4, 1usize..40), 1..200),
        ) {
            let mut budget = ByteBudget::new(100);
            let mut open: Vec<(u8, RequestId)> = Vec::new();
            for (key, act, bytes) in steps {
                let mine = open.iter().position(|(of, _)| *of == key);
                match (act, mine) {
                    (0, Some(index)) => budget.close(open.remove(index).1),
                    (1, Some(index)) => budget.shrink_to(open[index].1, bytes),
                    _ => {
                        let id = budget.open(key);
                        open.push((key, id));
                        let wanted = budget.bytes_of_key(&key) + bytes;
                        let mut rounds = 0;
                        loop {
                            match budget.grow(id, bytes) {
                                ChargeDecision::Admit => break,
                                // An evicted request releases its bytes immediately.
                                ChargeDecision::Wait => {
                                    let evicted: Vec<RequestId> = budget.requests.iter()
                                        .filter(|(_, holding)| holding.is_evicted)
                                        .map(|(id, _)| *id)
                                        .collect();
                                    open.retain(|(_, id)| !evicted.contains(id));
                                    evicted.into_iter().for_each(|id| budget.close(id));
                                }
                                ChargeDecision::Evict(_) => {}
                                ChargeDecision::Reject => {
                                    let largest = budget.keys.values().max().copied().unwrap_or(0);
                                    prop_assert!(wanted > 25 || wanted >= largest);
                                    break;
                                }
                            }
                            budget.check_invariants();
                            rounds += 1;
                            prop_assert!(rounds < 100, "each round evicts one or ends");
                        }
                    }
                }
                budget.check_invariants();
            }
        }
    }
}
