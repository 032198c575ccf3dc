//! Who gets a place where places are few, so that nobody who takes many keeps out those who take one.
//!
//! [`Door`] decides, as a function of who came and went; [`Gate`] carries that to tasks. A newcomer enters at
//! once while there is room. Where there is none, the group with most places gives up its oldest for a group
//! that has less; what is left waits, and of those the group with fewest places is next. A group is whatever
//! is one party as far as can be told: a key that was proven, or an address before.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

/// When someone inside has to go for a newcomer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rule {
    /// When its group has more places than the newcomer's would then have: equals wait for one another.
    Fair,
    /// Always, the newcomer's group counted among the others: where staying is worth nothing.
    Renewing,
}

/// What became of someone, through their own coming or another's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    /// It has a place.
    Enter(u64),
    /// Its place is another's now.
    Leave(u64),
    /// It waited, and too many do.
    GiveUp(u64),
}

type Groups<G> = BTreeMap<G, BTreeSet<u64>>;

/// See the module's documentation. Members are numbered as they come, so a lower number is an older one.
#[derive(Debug)]
struct Door<G> {
    rule: Rule,
    places: usize,
    waiting_max: usize,
    next: u64,
    inside: Groups<G>,
    waiting: Groups<G>,
    groups: BTreeMap<u64, G>,
    entered: usize,
}

impl<G: Ord + Clone> Door<G> {
    fn new(rule: Rule, places: usize, waiting_max: usize) -> Self {
        let (inside, waiting, groups) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self { rule, places, waiting_max, next: 0, inside, waiting, groups, entered: 0 }
    }

    /// Someone of `group` comes: their number, and what became of whom.
    fn arrive(&mut self, group: G) -> (u64, Vec<Told>) {
        let number = self.next;
        self.next += 1;
        self.groups.insert(number, group.clone());
        self.waiting.entry(group).or_default().insert(number);
        let mut told = self.settle();
        while self.groups.len() - self.entered > self.waiting_max {
            let newest = self.last_waiting().expect("somebody waits");
            self.remove(newest);
            told.push(Told::GiveUp(newest));
        }
        (number, told)
    }

    /// Someone goes, or is gone already.
    fn gone(&mut self, number: u64) -> Vec<Told> {
        self.remove(number);
        self.settle()
    }

    /// Lets in whoever may enter now.
    fn settle(&mut self) -> Vec<Told> {
        let mut told = Vec::new();
        while let Some((group, number)) = self.first_waiting() {
            if self.entered >= self.places {
                let Some(victim) = self.victim(&group) else { break };
                self.remove(victim);
                told.push(Told::Leave(victim));
            }
            take(&mut self.waiting, &group, number);
            self.inside.entry(group).or_default().insert(number);
            self.entered += 1;
            told.push(Told::Enter(number));
        }
        told
    }

    /// Whose turn it is: the group with fewest places; among these, who waits longest.
    fn first_waiting(&self) -> Option<(G, u64)> {
        let firsts = self.waiting.iter().filter_map(|(group, numbers)| Some((group, *numbers.first()?)));
        firsts
            .min_by_key(|(group, number)| (self.share(group), *number))
            .map(|(group, number)| (group.clone(), number))
    }

    /// Who has to give up waiting: of the group with most members in all, the newest.
    fn last_waiting(&self) -> Option<u64> {
        let lasts =
            self.waiting.iter().filter_map(|(group, numbers)| Some((group, numbers, *numbers.last()?)));
        let most = lasts.max_by_key(|(group, numbers, last)| (numbers.len() + self.share(group), *last));
        most.map(|(_, _, last)| last)
    }

    /// Who has to go so that one of `group` may enter.
    fn victim(&self, group: &G) -> Option<u64> {
        let largest = largest(&self.inside)?;
        let (most, share) = (self.share(&largest), self.share(group) + 1);
        let from = match self.rule {
            Rule::Fair => Some(&largest).filter(|_| most > share),
            Rule::Renewing => Some(if share > most { group } else { &largest }),
        };
        self.inside.get(from?).and_then(|numbers| numbers.first().copied())
    }

    fn share(&self, group: &G) -> usize {
        self.inside.get(group).map_or(0, BTreeSet::len)
    }

    fn remove(&mut self, number: u64) {
        let Some(group) = self.groups.remove(&number) else { return };
        if take(&mut self.inside, &group, number) {
            self.entered -= 1;
        } else {
            take(&mut self.waiting, &group, number);
        }
    }
}

/// The group with most members; among these, the one with the oldest.
fn largest<G: Ord + Clone>(groups: &Groups<G>) -> Option<G> {
    let most = groups.iter().max_by_key(|(_, numbers)| (numbers.len(), std::cmp::Reverse(numbers.first())));
    most.map(|(group, _)| group.clone())
}

fn take<G: Ord>(groups: &mut Groups<G>, group: &G, number: u64) -> bool {
    let Some(numbers) = groups.get_mut(group) else { return false };
    let was_there = numbers.remove(&number);
    if numbers.is_empty() {
        groups.remove(group);
    }
    was_there
}

/// A door that tasks pass.
#[derive(Debug)]
pub(crate) struct Gate<G>(Arc<Mutex<Inner<G>>>);

impl<G> Clone for Gate<G> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

#[derive(Debug)]
struct Inner<G> {
    door: Door<G>,
    /// How to tell each that it may enter, as long as it has not, and that it must leave.
    members: BTreeMap<u64, (Option<oneshot::Sender<()>>, CancellationToken)>,
}

impl<G: Ord + Clone> Gate<G> {
    pub(crate) fn new(rule: Rule, places: usize, waiting_max: usize) -> Self {
        let door = Door::new(rule, places, waiting_max);
        Self(Arc::new(Mutex::new(Inner { door, members: BTreeMap::new() })))
    }

    /// Takes a place or a turn. Dropping the pass gives it back.
    pub(crate) fn arrive(&self, group: G) -> Pass<G> {
        let (enter, entered) = oneshot::channel();
        let ended = CancellationToken::new();
        let mut inner = self.lock();
        let (number, told) = inner.door.arrive(group);
        inner.members.insert(number, (Some(enter), ended.clone()));
        inner.tell(told);
        drop(inner);
        Pass { gate: self.clone(), number, entered: Some(entered), ended }
    }

    fn lock(&self) -> MutexGuard<'_, Inner<G>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<G> Inner<G> {
    fn tell(&mut self, told: Vec<Told>) {
        for one in told {
            match one {
                Told::Enter(number) => {
                    let enter = self.members.get_mut(&number).and_then(|(enter, _)| enter.take());
                    // Whoever does not wait any more gives its place back when its pass is dropped.
                    let _ = enter.map(|enter| enter.send(()));
                }
                Told::Leave(number) | Told::GiveUp(number) => {
                    if let Some((_, ended)) = self.members.remove(&number) {
                        ended.cancel();
                    }
                }
            }
        }
    }
}

/// A place, or a turn.
#[derive(Debug)]
pub(crate) struct Pass<G: Ord + Clone> {
    gate: Gate<G>,
    number: u64,
    entered: Option<oneshot::Receiver<()>>,
    ended: CancellationToken,
}

impl<G: Ord + Clone> Pass<G> {
    /// Waits for the place; `None` where too many wait.
    pub(crate) async fn enter(mut self) -> Option<Self> {
        match self.entered.take() {
            Some(entered) => entered.await.ok().map(|()| self),
            None => Some(self),
        }
    }

    /// The place if it is there at once.
    pub(crate) fn enter_now(mut self) -> Option<Self> {
        let entered = self.entered.take().is_none_or(|mut entered| entered.try_recv().is_ok());
        entered.then_some(self)
    }

    /// Cancelled when the place is another's.
    pub(crate) fn ended(&self) -> CancellationToken {
        self.ended.clone()
    }
}

impl<G: Ord + Clone> Drop for Pass<G> {
    fn drop(&mut self) {
        let mut inner = self.gate.lock();
        inner.members.remove(&self.number);
        let told = inner.door.gone(self.number);
        inner.tell(told);
    }
}

/// Addresses that are one party as far as can be told: one IPv4 address, or the network of 64 bits that is the
/// least a site has in IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Site(IpAddr);

impl Site {
    pub(crate) fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V6(address) => {
                Self(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into())
            }
            v4 => Self(v4),
        }
    }

    pub(crate) fn address(self) -> IpAddr {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Told::{Enter, GiveUp, Leave};
    use proptest::prelude::*;

    #[test]
    fn equals_wait_for_one_another_and_many_make_room_for_few() {
        let mut door = Door::new(Rule::Fair, 3, 2);
        for number in 0..3 {
            assert_eq!(door.arrive("a"), (number, vec![Enter(number)]));
        }
        assert_eq!(door.arrive("a"), (3, vec![]), "its own group gives up nothing for it");
        assert_eq!(door.arrive("b"), (4, vec![Leave(0), Enter(4)]));
        assert_eq!(door.arrive("b"), (5, vec![]), "two of one and one of the other are even");
        assert_eq!(door.arrive("c"), (6, vec![Leave(1), Enter(6)]));
        assert_eq!(door.arrive("d"), (7, vec![GiveUp(5)]), "one each, and two wait who have a place besides");
        assert_eq!(door.gone(4), [Enter(7)], "the group with fewest places is next");
        assert_eq!(door.gone(6), [Enter(3)]);
        assert_eq!(door.gone(6), [], "gone is gone");
    }

    #[test]
    fn who_floods_the_waiting_room_makes_room_in_it() {
        let mut door = Door::new(Rule::Fair, 1, 2);
        assert_eq!(door.arrive("a").1, [Enter(0)]);
        assert_eq!((door.arrive("a").1, door.arrive("a").1), (vec![], vec![]));
        assert_eq!(door.arrive("b").1, [GiveUp(2)], "the newest of those who flood");
        assert_eq!(door.gone(0), [Enter(1)], "nobody has a place, so who waits longest is next");
    }

    #[test]
    fn where_staying_is_worth_nothing_the_oldest_of_the_many_leaves() {
        let mut door = Door::new(Rule::Renewing, 2, 0);
        assert_eq!((door.arrive("a").1, door.arrive("a").1), (vec![Enter(0)], vec![Enter(1)]));
        assert_eq!(door.arrive("b").1, [Leave(0), Enter(2)]);
        assert_eq!(door.arrive("b").1, [Leave(2), Enter(3)], "two of b would be more than one of a");
        assert_eq!(door.arrive("c").1, [Leave(1), Enter(4)]);
    }

    #[test]
    fn a_site_is_an_address_or_half_of_one() {
        let site = |text: &str| Site::of(text.parse().unwrap());
        assert_eq!(site("::ffff:10.0.0.1"), site("10.0.0.1"));
        assert_ne!(site("10.0.0.2"), site("10.0.0.1"));
        assert_eq!(site("2001:db8:1:2::3"), site("2001:db8:1:2:ffff::1"));
        assert_ne!(site("2001:db8:1:2::3"), site("2001:db8:1:3::3"));
    }

    proptest! {
        /// Whatever comes and goes, no more are inside than there are places, none waits beside a free place,
        /// and a group without any place waits only while every place is another group's only one.
        #[test]
        fn no_group_is_kept_out_by_one_that_has_two_places(
            renewing: bool,
            steps in proptest::collection::vec((0u8..5, any::<bool>(), 0usize..40), 1..200),
        ) {
            let rule = if renewing { Rule::Renewing } else { Rule::Fair };
            let (places, waiting_max) = (4, 3);
            let mut door = Door::new(rule, places, waiting_max);
            let mut present: Vec<u64> = Vec::new();
            for (group, comes, which) in steps {
                let told = if comes || present.is_empty() {
                    let (number, told) = door.arrive(group);
                    present.push(number);
                    told
                } else {
                    door.gone(present.remove(which % present.len()))
                };
                for one in told {
                    if let Leave(number) | GiveUp(number) = one {
                        present.retain(|other| *other != number);
                    }
                }
                let inside: usize = door.inside.values().map(BTreeSet::len).sum();
                let waiting: usize = door.waiting.values().map(BTreeSet::len).sum();
                prop_assert_eq!((inside, inside + waiting), (door.entered, present.len()));
                prop_assert!(inside <= places && waiting <= waiting_max);
                prop_assert!(waiting == 0 || inside == places);
                let most = door.inside.values().map(BTreeSet::len).max().unwrap_or(0);
                for group in door.waiting.keys() {
                    prop_assert!(most <= door.share(group) + 1, "{group} waits beside one with {most}");
                }
            }
        }
    }
}
