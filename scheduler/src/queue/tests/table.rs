//! Decisions of the queue as a table: each case has places, projects, gangs that hold and gangs that wait,
//! and the answers below them.
//!
//! `held NAME PROJECT RANKS` runs, `ending NAME PROJECT RANKS` ends already, `waits NAME PROJECT RANKS` is in
//! the queue; `-` is no project. A failing test prints the whole table with its answers, for review.

use super::histories::{GRACE_MS, Places, ProjectRow, amounts, charge, running, voted};
use super::{Running, Waiting, decide};
use crate::fair_share::{MEAN_BITS, QuotaTree};
use crate::queue::{GangRoom as _, GangTurn, RunningGang, WaitingGang};
use protocol::usage::UsageRate;
use std::collections::BTreeMap;
use std::fmt::Write as _;

const TABLE: &str = include_str!("decisions.txt");

/// Row of a project as a case has it: name, parent, weight, quota, limit, and the places held on average.
struct ProjectLine<'a> {
    row: ProjectRow<'a>,
    weight: u32,
    mean: u32,
}

#[derive(Default)]
struct Case<'a> {
    places: Vec<u32>,
    now: u64,
    projects: Vec<ProjectLine<'a>>,
    held: Vec<(bool, &'a str, Words<'a>)>,
    waits: Vec<(&'a str, Words<'a>)>,
}

/// Words of a line: those without a name in order, and `key=value`.
#[derive(Default)]
struct Words<'a> {
    plain: Vec<&'a str>,
    named: BTreeMap<&'a str, &'a str>,
}

impl<'a> Words<'a> {
    fn of(text: &'a str) -> Self {
        let mut words = Self::default();
        for word in text.split_whitespace() {
            match word.split_once('=') {
                Some((key, value)) => drop(words.named.insert(key, value)),
                None => words.plain.push(word),
            }
        }
        words
    }

    fn number(&self, key: &str, otherwise: u64) -> u64 {
        self.named.get(key).map_or(otherwise, |text| text.parse().expect("a number"))
    }

    fn places(&self, key: &str) -> Option<u32> {
        self.named.get(key).map(|text| text.parse().expect("a number of places"))
    }

    fn project(&self) -> Option<&'a str> {
        Some(self.plain[1]).filter(|name| *name != "-")
    }

    fn ranks(&self) -> u32 {
        self.plain[2].parse().expect("a number of ranks")
    }
}

fn read(text: &str) -> Case<'_> {
    let mut case = Case { now: 100, ..Case::default() };
    for line in text.lines().filter(|line| !line.starts_with("->") && !line.starts_with('#')) {
        let Some((kind, rest)) = line.split_once(' ') else { continue };
        let words = Words::of(rest);
        match kind {
            "places" => case.places = words.plain.iter().map(|word| word.parse().expect("places")).collect(),
            "now" => case.now = words.plain[0].parse().expect("a time"),
            "project" => case.projects.push(ProjectLine {
                row: (
                    words.plain[0],
                    words.named.get("parent").copied(),
                    words.places("quota").unwrap_or(0),
                    words.places("borrow"),
                ),
                weight: words.places("weight").unwrap_or(1),
                mean: words.places("mean").unwrap_or(0),
            }),
            "held" | "ending" => case.held.push((kind == "ending", words.plain[0], words)),
            "waits" => case.waits.push((words.plain[0], words)),
            other => panic!("no such line: {other}"),
        }
    }
    case
}

fn quotas(case: &Case<'_>) -> QuotaTree {
    let rows: Vec<ProjectRow<'_>> = case.projects.iter().map(|project| project.row).collect();
    let weights: Vec<u32> = case.projects.iter().map(|project| project.weight).collect();
    let total = case.places.iter().sum::<u32>();
    let capacity = UsageRate { gpu_millis: u64::from(total) * 1000, cpu_millicores: 0, memory_mib: 0 };
    QuotaTree::new(&voted(&rows, &weights), &capacity, |project| {
        let of = |line: &&ProjectLine<'_>| project.is_some_and(|name| name.as_str() == line.row.0);
        let mean = case.projects.iter().find(of).map_or(0, |line| line.mean);
        amounts(mean).map(|amount| amount << MEAN_BITS)
    })
}

fn answer(case: &Case<'_>) -> String {
    let quotas = quotas(case);
    let mut room = Places(case.places.clone());
    let mut held: Vec<Running> = Vec::new();
    for (is_ending, name, words) in &case.held {
        let place = room.place(&words.ranks()).unwrap_or_else(|| panic!("{name} does not fit"));
        assert!(room.take(&words.ranks(), &place));
        let ends_at = words.number("ends", if *is_ending { case.now + GRACE_MS } else { 500 });
        let gang = running(&quotas, words.project(), words.ranks(), place, ends_at);
        let grace_ms = gang.grace_ms.filter(|_| !is_ending);
        let (priority, since) = (words.number("priority", 5) as u32, words.number("since", 0));
        held.push(RunningGang { priority, since, grace_ms, ..gang });
    }
    let wait = |(at, (_, words)): (usize, &(&str, Words<'_>))| WaitingGang {
        gang: words.ranks(),
        charge: charge(&quotas, words.project(), words.ranks()),
        priority: words.number("priority", 5) as u32,
        submitted_at: words.number("at", at as u64),
        run_ms: words.number("run", 1000),
    };
    let waiting: Vec<Waiting> = case.waits.iter().enumerate().map(wait).collect();
    let (turns, preempted) = decide(&quotas, &room, &held, &waiting, case.now);
    let mut out = String::new();
    for ((name, _), turn) in case.waits.iter().zip(turns) {
        let text = match turn {
            GangTurn::Starts(place) => format!("starts on {place:?}"),
            GangTurn::Reserved { at } => format!("is reserved for {at}"),
            GangTurn::Reclaims { at } => format!("gets its room back by {at}"),
            GangTurn::NoRoom => "has no room".into(),
            GangTurn::Quota(over) => {
                format!("would bring {} to {} of {}", over.project, over.sum / 1000, over.limit / 1000)
            }
            GangTurn::Behind => "is behind".into(),
        };
        writeln!(out, "-> {name} {text}").expect("a string takes any text");
    }
    for at in preempted {
        writeln!(out, "-> {} is preempted", case.held[at].1).expect("a string takes any text");
    }
    out
}

#[test]
fn the_queue_decides_as_the_table_says() {
    let (head, rest) = TABLE.split_once("\n= ").expect("a table has cases");
    let mut table = head.to_string();
    let mut count = 0;
    for block in rest.split("\n= ") {
        let questions: Vec<&str> =
            block.lines().filter(|line| !line.starts_with("->") && !line.is_empty()).collect();
        let answers = answer(&read(&questions[1..].join("\n")));
        write!(table, "\n= {}\n{answers}", questions.join("\n")).expect("a string takes any text");
        count += 1;
    }
    assert!(count >= 40, "only {count} cases");
    assert!(table == TABLE, "the answers are\n<<<\n{table}>>>");
}
