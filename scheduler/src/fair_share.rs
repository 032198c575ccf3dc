//! Quotas and shares of projects: what each may hold, whose turn it is, and from whom it reclaims.
//!
//! The tree has a node for each project, and one more for the jobs of a project itself if others belong to
//! it: a leaf, whose nominal quota is what the others leave of the parent's. Gangs are charged to leaves. A
//! gang starts if no project above it passes its quota and what it may borrow. A gang has a *claim* at a node
//! whose nominal quota it does not pass: there it gets back what siblings hold beyond theirs.
//!
//! The share of a node is its dominant one: of each resource, what it holds now and what it held on average,
//! by a half-life, as a part of what all nodes offer; the largest of these, divided by the weight. At each
//! level of the tree, gangs with a claim come first, then those of the lowest share.
//!
//! All numbers are integers, so that each replica comes to the same result.

mod half_life;
#[cfg(test)]
mod tests;

pub use half_life::ShareBook;
pub(crate) use half_life::{held_by_project, settle};

use protocol::ProjectName;
use protocol::project::{ProjectQuota, ProjectTree};
use protocol::usage::UsageRate;
use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};

/// Number of resources that projects divide: cores, memory and GPUs.
const RESOURCES: usize = 3;
/// Bits of the fraction of a mean.
pub(crate) const MEAN_BITS: u32 = 16;
/// Bits of the fraction of a share.
const SHARE_BITS: u32 = 32;
/// Position of the root among the nodes.
const ROOT: usize = 0;
/// Bytes of a mebibyte, the unit in which memory is metered.
const MIB: u64 = 1024 * 1024;

/// Amounts by resource: thousandths of a core, mebibytes, thousandths of a GPU.
pub(crate) type Amounts = [u64; RESOURCES];

/// Returns a rate by resource.
pub(crate) fn amounts_of(rate: &UsageRate) -> Amounts {
    [rate.cpu_millicores, rate.memory_mib, rate.gpu_millis]
}

pub(crate) fn amounts_of_quota(quota: &ProjectQuota) -> Amounts {
    [quota.cpu_millicores, quota.memory_bytes / MIB, u64::from(quota.gpus).saturating_mul(1000)]
}

/// Returns amounts as a rate.
pub(crate) fn rate_of([cpu_millicores, memory_mib, gpu_millis]: Amounts) -> UsageRate {
    UsageRate { gpu_millis, cpu_millicores, memory_mib }
}

/// Amounts that a gang takes, and the leaf of the tree from which it takes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct GangCharge {
    leaf: usize,
    amounts: Amounts,
}

impl GangCharge {
    /// Returns the leaf of the tree to which the gang is charged.
    pub(crate) fn leaf(&self) -> usize {
        self.leaf
    }
}

/// Facts on which the turn of a gang depends.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TurnKey {
    pub(crate) charge: GangCharge,
    pub(crate) priority: u32,
    pub(crate) submitted_at: u64,
}

/// Limit that a gang would pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct QuotaShortfall {
    /// Project whose limit it is.
    pub(crate) project: ProjectName,
    /// Resource, by position.
    pub(crate) resource: usize,
    /// Amount that the project would hold.
    pub(crate) sum: u64,
    /// Amount of its quota.
    pub(crate) nominal: u64,
    /// Amount of its quota and of what it may borrow.
    pub(crate) limit: u64,
    node: usize,
}

impl QuotaShortfall {
    /// Returns whether both are of one node of the tree.
    pub(crate) fn is_of_same_node(&self, other: &Self) -> bool {
        self.node == other.node
    }
}

/// Node of the tree.
#[derive(Debug, Clone)]
struct QuotaNode {
    /// Project; that of the parent for the leaf of its own jobs.
    project: Option<ProjectName>,
    parent: usize,
    depth: usize,
    weight: u64,
    nominal: Amounts,
    limit: Amounts,
    held: Amounts,
    /// Amounts held on average, in units of 2^-[`MEAN_BITS`].
    mean: Amounts,
    children: Vec<usize>,
}

/// Tree of quotas, with what each project holds.
#[derive(Debug, Clone)]
pub(crate) struct QuotaTree {
    /// Parents stand before their children, the root first.
    nodes: Vec<QuotaNode>,
    /// Leaf of the jobs of each project; those of the root under no name.
    leaves: BTreeMap<Option<ProjectName>, usize>,
    capacity: Amounts,
}

impl QuotaTree {
    /// Returns the tree of these projects, in which no gang holds anything yet. `capacity` is what all nodes
    /// offer, and `mean` what the jobs of a project itself held on average.
    pub(crate) fn new(
        tree: &ProjectTree,
        capacity: &UsageRate,
        mean: impl Fn(Option<&ProjectName>) -> Amounts,
    ) -> Self {
        let root = QuotaNode {
            project: None,
            parent: ROOT,
            depth: 0,
            weight: 1,
            nominal: [u64::MAX; RESOURCES],
            limit: [u64::MAX; RESOURCES],
            held: [0; RESOURCES],
            mean: [0; RESOURCES],
            children: Vec::new(),
        };
        let mut quotas = Self { nodes: vec![root], leaves: BTreeMap::new(), capacity: amounts_of(capacity) };
        quotas.add_children(tree, None, ROOT);
        let mut next = ROOT + 1;
        while let Some(node) = quotas.nodes.get(next) {
            let name = node.project.clone();
            quotas.add_children(tree, name.as_ref(), next);
            next += 1;
        }
        quotas.add_own_leaves(tree);
        for (name, leaf) in quotas.leaves.clone() {
            let mean = mean(name.as_ref());
            quotas.each_above(leaf, |node| add(&mut node.mean, &mean));
        }
        debug_assert_eq!(quotas.leaves.len(), tree.projects.len() + 1, "each project of a checked tree");
        quotas
    }

    fn add_children(&mut self, tree: &ProjectTree, parent: Option<&ProjectName>, at: usize) {
        debug_assert!(self.nodes[at].children.is_empty(), "children are added once");
        for project in tree.projects.iter().filter(|project| project.parent.as_ref() == parent) {
            let nominal = amounts_of_quota(&project.quota);
            let mut limit = nominal;
            match &project.borrow {
                Some(borrow) => add(&mut limit, &amounts_of_quota(borrow)),
                None => limit = [u64::MAX; RESOURCES],
            }
            self.push(Some(project.name.clone()), at, u64::from(project.weight), (nominal, limit));
        }
    }

    /// Adds a leaf for the jobs of each project that others belong to, and of the root.
    fn add_own_leaves(&mut self, tree: &ProjectTree) {
        for at in 0..self.nodes.len() {
            let name = self.nodes[at].project.clone();
            let leaf = if at == ROOT || !self.nodes[at].children.is_empty() {
                let mut left = if at == ROOT { [0; RESOURCES] } else { self.nodes[at].nominal };
                for child in &self.nodes[at].children {
                    subtract(&mut left, &self.nodes[*child].nominal);
                }
                let weight = u64::from(tree.own_weight.max(1));
                self.push(name.clone(), at, weight, (left, [u64::MAX; RESOURCES]))
            } else {
                at
            };
            debug_assert!(self.nodes[leaf].children.is_empty(), "a leaf has no children");
            self.leaves.insert(name, leaf);
        }
    }

    fn push(
        &mut self,
        project: Option<ProjectName>,
        parent: usize,
        weight: u64,
        (nominal, limit): (Amounts, Amounts),
    ) -> usize {
        let at = self.nodes.len();
        debug_assert!(parent < at, "a parent stands before its children");
        self.nodes.push(QuotaNode {
            project,
            parent,
            depth: self.nodes[parent].depth + 1,
            weight: weight.max(1),
            nominal,
            limit,
            held: [0; RESOURCES],
            mean: [0; RESOURCES],
            children: Vec::new(),
        });
        self.nodes[parent].children.push(at);
        at
    }

    /// Returns the charge of a gang; none if the tree does not have its project.
    pub(crate) fn charge(&self, project: Option<&ProjectName>, rate: &UsageRate) -> Option<GangCharge> {
        let leaf = *self.leaves.get(&project.cloned())?;
        debug_assert!(leaf != ROOT, "no gang is charged to the root itself");
        Some(GangCharge { leaf, amounts: amounts_of(rate) })
    }

    /// Returns the charge of a gang that holds slots. That of a project which was dropped is the root's.
    pub(crate) fn charge_of_held(&self, project: Option<&ProjectName>, rate: &UsageRate) -> GangCharge {
        let root = || GangCharge { leaf: self.leaves[&None], amounts: amounts_of(rate) };
        self.charge(project, rate).unwrap_or_else(root)
    }

    /// Counts what a gang takes.
    pub(crate) fn take(&mut self, charge: &GangCharge) {
        debug_assert!(charge.leaf < self.nodes.len(), "a charge is of this tree");
        self.each_above(charge.leaf, |node| add(&mut node.held, &charge.amounts));
    }

    /// Counts what a gang gives back.
    pub(crate) fn give(&mut self, charge: &GangCharge) {
        self.each_above(charge.leaf, |node| {
            debug_assert!((0..RESOURCES).all(|at| node.held[at] >= charge.amounts[at]), "it was taken");
            subtract(&mut node.held, &charge.amounts);
        });
    }

    fn each_above(&mut self, leaf: usize, change: impl Fn(&mut QuotaNode)) {
        let mut at = leaf;
        loop {
            change(&mut self.nodes[at]);
            if at == ROOT {
                return;
            }
            at = self.nodes[at].parent;
        }
    }

    /// Returns the nodes from a leaf up to a child of the root.
    fn path(&self, leaf: usize) -> impl Iterator<Item = (usize, &QuotaNode)> {
        let up = |(_, node): &(usize, &QuotaNode)| {
            let parent = node.parent;
            (parent != ROOT).then(|| (parent, &self.nodes[parent]))
        };
        let first = self.nodes.get(leaf).filter(|_| leaf != ROOT).map(|node| (leaf, node));
        std::iter::successors(first, up)
    }

    /// Returns the first limit that a gang would pass now; none if it may start.
    pub(crate) fn shortfall(&self, charge: &GangCharge) -> Option<QuotaShortfall> {
        self.first_shortfall(charge, |node| node.held)
    }

    /// Returns the first limit that a gang would pass even if no other held anything.
    pub(crate) fn permanent_shortfall(&self, charge: &GangCharge) -> Option<QuotaShortfall> {
        self.first_shortfall(charge, |_| [0; RESOURCES])
    }

    fn first_shortfall(
        &self,
        charge: &GangCharge,
        held: impl Fn(&QuotaNode) -> Amounts,
    ) -> Option<QuotaShortfall> {
        self.path(charge.leaf).find_map(|(at, node)| {
            let sums = held(node);
            let passed = |resource: &usize| {
                let amount = charge.amounts[*resource];
                amount > 0 && sums[*resource].saturating_add(amount) > node.limit[*resource]
            };
            let resource = (0..RESOURCES).find(passed)?;
            Some(QuotaShortfall {
                project: node.project.clone()?,
                resource,
                sum: sums[resource].saturating_add(charge.amounts[resource]),
                nominal: node.nominal[resource],
                limit: node.limit[resource],
                node: at,
            })
        })
    }

    /// Returns whether a gang passes no limit.
    pub(crate) fn admits(&self, charge: &GangCharge) -> bool {
        self.shortfall(charge).is_none()
    }

    /// Returns whether a node passes its nominal quota with a gang.
    fn borrows_with(&self, at: usize, charge: &GangCharge) -> bool {
        let node = &self.nodes[at];
        debug_assert!(at != ROOT, "the root has no quota");
        let beyond = |at: usize| {
            charge.amounts[at] > 0 && node.held[at].saturating_add(charge.amounts[at]) > node.nominal[at]
        };
        (0..RESOURCES).any(beyond)
    }

    /// Returns whether a gang has a claim: a node above it keeps its nominal quota with it.
    pub(crate) fn has_claim(&self, charge: &GangCharge) -> bool {
        self.path(charge.leaf).any(|(at, _)| !self.borrows_with(at, charge))
    }

    /// Returns whether there are projects.
    pub(crate) fn has_projects(&self) -> bool {
        self.leaves.len() > 1
    }

    /// Returns the leaf whose first gang has a claim and comes before those of the others: at each level,
    /// gangs with which a node keeps its nominal quota come first, then those of the lowest share. `first`
    /// returns the first gang of a leaf: its charge, the time of its submission and its position.
    pub(crate) fn next_claim(
        &self,
        first: impl Fn(usize) -> Option<(GangCharge, u64, usize)>,
    ) -> Option<usize> {
        let mut best: Vec<Option<(GangCharge, u64, usize)>> = vec![None; self.nodes.len()];
        for (at, node) in self.nodes.iter().enumerate().rev() {
            let key = |child: &usize| {
                let (charge, submitted_at, position) = best[*child]?;
                Some((
                    (self.borrows_with(*child, &charge), self.share(*child), submitted_at, position),
                    charge,
                ))
            };
            best[at] = match node.children.is_empty() {
                true => first(at).filter(|(charge, ..)| self.has_claim(charge)),
                false => {
                    let heads = node.children.iter().filter_map(key);
                    let least = heads.min_by(|(a, _), (b, _)| a.cmp(b));
                    least.map(|((_, _, submitted_at, position), charge)| (charge, submitted_at, position))
                }
            };
        }
        let claims = best[ROOT].is_none_or(|(charge, ..)| self.has_claim(&charge));
        debug_assert!(claims, "only a gang with a claim is chosen");
        best[ROOT].map(|(charge, ..)| charge.leaf)
    }

    /// Returns whether a gang may have the room of another that runs. Where their ways to the root meet, the
    /// one comes from a node that keeps its nominal quota with it, and the other from one that is beyond its
    /// own in a resource that both take. The other could not claim it back: with it, its node passes its
    /// quota.
    pub(crate) fn may_reclaim(&self, gang: &GangCharge, victim: &GangCharge) -> bool {
        let Some((own, other)) = self.branches(gang.leaf, victim.leaf) else { return false };
        let node = &self.nodes[other];
        let borrowed =
            |at: usize| gang.amounts[at] > 0 && victim.amounts[at] > 0 && node.held[at] > node.nominal[at];
        (0..RESOURCES).any(borrowed) && !self.borrows_with(own, gang)
    }

    /// Returns the siblings from which two leaves come; none for the same leaf.
    fn branches(&self, one: usize, two: usize) -> Option<(usize, usize)> {
        let (mut one, mut two) = (one, two);
        while self.nodes[one].parent != self.nodes[two].parent {
            if self.nodes[one].depth >= self.nodes[two].depth {
                one = self.nodes[one].parent;
            } else {
                two = self.nodes[two].parent;
            }
        }
        debug_assert_eq!(self.nodes[one].parent, self.nodes[two].parent, "both are siblings");
        (one != two && one != ROOT && two != ROOT).then_some((one, two))
    }

    /// Returns whether a gang that runs holds what its project borrowed.
    pub(crate) fn is_borrower(&self, charge: &GangCharge) -> bool {
        self.path(charge.leaf).any(|(_, node)| {
            (0..RESOURCES).any(|at| charge.amounts[at] > 0 && node.held[at] > node.nominal[at])
        })
    }

    /// Returns what a project and those that belong to it hold, held on average, and their dominant share in
    /// millionths; of the root, its own jobs alone.
    pub(crate) fn holdings(&self, project: Option<&ProjectName>) -> Option<(Amounts, Amounts, u64)> {
        let leaf = *self.leaves.get(&project.cloned())?;
        let is_own_leaf =
            project.is_some() && self.nodes[self.nodes[leaf].parent].project.as_ref() == project;
        let at = if is_own_leaf { self.nodes[leaf].parent } else { leaf };
        let node = &self.nodes[at];
        debug_assert!(node.project.as_ref() == project, "the node of the project");
        let share = self.dominant(at).saturating_mul(1_000_000) >> SHARE_BITS;
        Some((node.held, node.mean.map(|mean| mean >> MEAN_BITS), u64::try_from(share).unwrap_or(u64::MAX)))
    }

    /// Returns the dominant share of a node, divided by its weight, in units of 2^-[`SHARE_BITS`].
    fn share(&self, at: usize) -> u128 {
        debug_assert!(self.nodes[at].weight > 0, "a voted weight is positive");
        self.dominant(at) / u128::from(self.nodes[at].weight)
    }

    fn dominant(&self, at: usize) -> u128 {
        let node = &self.nodes[at];
        let part = |at: usize| {
            let sum = (u128::from(node.held[at]) << MEAN_BITS) + u128::from(node.mean[at]);
            (sum << (SHARE_BITS - MEAN_BITS)) / u128::from(self.capacity[at].max(1))
        };
        (0..RESOURCES).map(part).max().unwrap_or(0)
    }

    /// Returns the turns of gangs that wait: positions in `entries`, the first turn first, at most this many.
    /// Each turn counts as held for those after it, unless the gang takes more than all nodes offer. Of one
    /// project, the higher priority comes first, then the earlier submission.
    pub(crate) fn turns(&self, entries: &[TurnKey], most: usize) -> Vec<usize> {
        let mut turns = TurnOrder::new(self.clone(), entries);
        let mut order = Vec::new();
        while order.len() < most.min(entries.len()) {
            let Some(next) = turns.next_turn(entries) else { break };
            order.push(next);
        }
        debug_assert_eq!(order.len(), most.min(entries.len()), "each gang has its turn");
        order
    }

    /// Returns the least weight with which a project would come before another where their ways to the root
    /// meet, with the project whose weight it is; none if its weight does not decide.
    pub(crate) fn weight_to_precede(
        &self,
        gang: &GangCharge,
        before: &GangCharge,
    ) -> Option<(ProjectName, u64, u64)> {
        let (own, other) = self.branches(gang.leaf, before.leaf)?;
        let node = &self.nodes[own];
        let is_own_leaf = node.project == self.nodes[node.parent].project;
        let share = self.share(other);
        let weight = self.dominant(own).checked_div(share.max(1))?.checked_add(1)?;
        let weight = u64::try_from(weight).ok()?;
        debug_assert!(weight > 0, "a weight that precedes is positive");
        let decides = share > 0 && weight > node.weight && !is_own_leaf;
        decides.then(|| Some((node.project.clone()?, node.weight, weight)))?
    }
}

/// Turns under construction: the queue of each leaf, and the gang of each node whose turn is next.
struct TurnOrder {
    quotas: QuotaTree,
    queues: Vec<VecDeque<usize>>,
    next: Vec<Option<usize>>,
}

impl TurnOrder {
    fn new(quotas: QuotaTree, entries: &[TurnKey]) -> Self {
        let mut queues: Vec<VecDeque<usize>> = vec![VecDeque::new(); quotas.nodes.len()];
        let mut sorted: Vec<usize> = (0..entries.len()).collect();
        sorted.sort_by_key(|at| (Reverse(entries[*at].priority), entries[*at].submitted_at, *at));
        for at in sorted {
            queues[entries[at].charge.leaf].push_back(at);
        }
        let queued: usize = queues.iter().map(VecDeque::len).sum();
        debug_assert_eq!(queued, entries.len(), "each gang is in the queue of its leaf");
        let next = vec![None; quotas.nodes.len()];
        let mut turns = Self { quotas, queues, next };
        // Children stand after their parents.
        for at in (0..turns.quotas.nodes.len()).rev() {
            turns.update(at, entries);
        }
        turns
    }

    fn update(&mut self, at: usize, entries: &[TurnKey]) {
        let quotas = &self.quotas;
        let key = |child: usize, gang: usize| {
            let entry = &entries[gang];
            (quotas.borrows_with(child, &entry.charge), quotas.share(child), entry.submitted_at, gang)
        };
        let children = &quotas.nodes[at].children;
        let heads = children.iter().filter_map(|child| Some(key(*child, self.next[*child]?)));
        let own = self.queues[at].front().copied();
        self.next[at] = heads.min().map(|(.., gang)| gang).or(own);
    }

    fn next_turn(&mut self, entries: &[TurnKey]) -> Option<usize> {
        let gang = self.next[ROOT]?;
        let charge = entries[gang].charge;
        let popped = self.queues[charge.leaf].pop_front();
        debug_assert_eq!(popped, Some(gang), "the next of a leaf is the first of its queue");
        // A gang that never starts counts for nothing.
        let capacity = &self.quotas.capacity;
        if (0..RESOURCES).all(|at| charge.amounts[at] <= capacity[at]) {
            self.quotas.take(&charge);
        }
        let mut at = charge.leaf;
        loop {
            self.update(at, entries);
            if at == ROOT {
                return Some(gang);
            }
            at = self.quotas.nodes[at].parent;
        }
    }
}

fn add(sum: &mut Amounts, other: &Amounts) {
    sum.iter_mut().zip(other).for_each(|(sum, other)| *sum = sum.saturating_add(*other));
}

fn subtract(sum: &mut Amounts, other: &Amounts) {
    sum.iter_mut().zip(other).for_each(|(sum, other)| *sum = sum.saturating_sub(*other));
}
