//! Announcements: the proposals that begin to wait, each once in each stage, and why an attempt to deliver
//! one failed.

use super::stage::{NoticeId, WaitingStage};
use crate::reviewed::ReviewedProposal;
use human_chain::show_time;
use protocol::display::counted;
use protocol::{Millis, ProposalId};
use serde::Serialize;
use std::collections::BTreeMap;

/// Most notices that are remembered; control keeps far fewer open proposals and drafts.
const REMEMBERED_MAX: usize = 4096;
/// Shortest time in milliseconds for which a notice of a veto is remembered: a day, which is the usual
/// waiting time. Its end is in part control's word, so a control that moves the end repeats the notice once
/// a day.
const VETO_REMEMBERED_MS: u64 = 24 * 3600 * 1000;

/// A proposal that waits, as it is announced. Nothing in it is a server's text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Announcement {
    pub(super) id: ProposalId,
    pub(super) stage: WaitingStage,
    /// Six words of the text to sign.
    pub(super) words: [&'static str; 6],
    /// First sentence of the text to sign.
    pub(super) change: String,
    /// End of the vote, or of the time for a veto.
    pub(super) expires_at: Millis,
    /// Page of the proposal.
    pub(super) link: String,
    /// Number of questions about it without an answer.
    pub(super) open_questions: usize,
}

impl Announcement {
    /// Describes a proposal that waits until `expires_at`; its page is below this address.
    pub(super) fn new(
        reviewed: &ReviewedProposal,
        stage: WaitingStage,
        expires_at: Millis,
        console: &str,
    ) -> Self {
        Self {
            id: reviewed.view.id,
            stage,
            words: reviewed.words,
            change: reviewed.sentence.clone(),
            expires_at,
            link: format!("{}/console/proposals/{}", console.trim_end_matches('/'), reviewed.view.id),
            open_questions: reviewed.thread.unanswered(),
        }
    }

    /// Returns the name under which its notices are sent and recorded.
    pub(super) fn notice(&self) -> NoticeId {
        NoticeId { proposal: self.id, stage: self.stage }
    }

    /// Returns the first line for people, without a deadline: `proposal 7f3a waits for a vote`.
    pub(super) fn title(&self) -> String {
        format!("{} {} waits for {}", self.stage.noun(), self.id.short(), self.stage.awaited())
    }

    /// Returns the announcement as lines for people.
    pub(super) fn text(&self) -> String {
        let asked = match self.open_questions {
            0 => String::new(),
            count => format!("\n{} without an answer", counted(count as u64, "question")),
        };
        format!(
            "{} until {}\n{}\nwords: {}{asked}\n{}\nnext: quorate {} {}",
            self.title(),
            show_time(self.expires_at),
            self.change,
            self.words.join(" "),
            self.link,
            self.stage.command(),
            self.id.short()
        )
    }
}

/// Reason for which an attempt failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum AttemptError {
    /// It may succeed later.
    Retry(String),
    /// The receiver wants no more of them.
    Refused(String),
}

/// Notices that were announced, with the ends until which they are remembered.
#[derive(Debug, Default)]
pub(super) struct Announced(BTreeMap<NoticeId, Millis>);

impl Announced {
    /// Returns whether a proposal was announced in this stage.
    pub(super) fn contains(&self, notice: &NoticeId) -> bool {
        self.0.contains_key(notice)
    }

    /// Returns those of the waiting proposals that were not announced before, in the order of their ends, and
    /// remembers them until they expire. A list that leaves one out for a while does not repeat it.
    pub(super) fn take_new(&mut self, present: Vec<Announcement>, now: Millis) -> Vec<Announcement> {
        self.0.retain(|_, until| *until >= now);
        let mut new: Vec<Announcement> = present
            .into_iter()
            .filter(|one| one.expires_at >= now && !self.contains(&one.notice()))
            .collect();
        new.sort_by_key(|one| (one.expires_at, one.notice()));
        new.dedup_by_key(|one| one.notice());
        new.truncate(REMEMBERED_MAX.saturating_sub(self.0.len()));
        let until = |one: &Announcement| match one.stage {
            WaitingStage::Veto => one.expires_at.max(now.plus(VETO_REMEMBERED_MS)),
            WaitingStage::Draft | WaitingStage::Vote => one.expires_at,
        };
        self.0.extend(new.iter().map(|one| (one.notice(), until(one))));
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::Digest;

    fn one(name: &str, expires_at: u64) -> Announcement {
        Announcement {
            id: ProposalId(Digest::of(name.as_bytes())),
            stage: WaitingStage::Vote,
            words: ["badge", "pelican", "gecko", "iris", "barn", "velvet"],
            change: format!("Start the service {name}."),
            expires_at: Millis(expires_at),
            link: "https://one.example.org/console/proposals/x".into(),
            open_questions: 0,
        }
    }

    #[test]
    fn each_proposal_is_announced_once_and_the_most_urgent_first() {
        let mut announced = Announced::default();
        let names = |new: Vec<Announcement>| -> Vec<String> {
            new.into_iter().map(|one| one.change.replace("Start the service ", "")).collect()
        };
        for (case, now, present, expected) in [
            ("none", 0, vec![], vec![]),
            ("two, and one twice", 1, vec![one("b", 20), one("a", 10), one("b", 20)], vec!["a.", "b."]),
            ("the same", 2, vec![one("b", 20), one("a", 10)], vec![]),
            ("one more", 3, vec![one("b", 20), one("c", 5), one("a", 10)], vec!["c."]),
            ("one is hidden", 4, vec![one("a", 10)], vec![]),
            ("and shown again", 5, vec![one("b", 20), one("a", 10)], vec![]),
            ("one that has expired", 6, vec![one("d", 5)], vec![]),
            ("a new one after all", 30, vec![one("e", 40)], vec!["e."]),
        ] {
            assert_eq!(names(announced.take_new(present, Millis(now))), expected, "{case}");
        }
        assert_eq!(announced.0.len(), 1, "what has expired is forgotten");
    }

    /// A draft that is opened, and then carried, is announced in each stage. Attack: control moves the end of
    /// the time for a veto, so that the notice is sent again and again.
    #[test]
    fn each_stage_is_announced_once() {
        let mut announced = Announced::default();
        let at = |stage, expires_at| Announcement { stage, ..one("a", expires_at) };
        for stage in [WaitingStage::Draft, WaitingStage::Vote, WaitingStage::Veto] {
            assert_eq!(announced.take_new(vec![at(stage, 10)], Millis(1)).len(), 1, "{stage:?}");
        }
        let mut repeated = 0;
        for now in (0..VETO_REMEMBERED_MS).step_by(5_000) {
            repeated += announced.take_new(vec![at(WaitingStage::Veto, now + 1)], Millis(now)).len();
        }
        assert_eq!(repeated, 0);
        // Positive control: by the ends alone it would have been repeated at each look.
        let moved = at(WaitingStage::Veto, 2 * VETO_REMEMBERED_MS + 1);
        assert_eq!(announced.take_new(vec![moved], Millis(2 * VETO_REMEMBERED_MS)).len(), 1);
    }

    /// Attack: control invents proposals without end.
    #[test]
    fn a_flood_of_proposals_takes_a_limited_amount_of_memory() {
        let mut announced = Announced::default();
        let flood = |from: usize| (from..from + 5000).map(|number| one(&number.to_string(), 100)).collect();
        assert_eq!(announced.take_new(flood(0), Millis(0)).len(), REMEMBERED_MAX);
        assert_eq!(announced.take_new(flood(5000), Millis(0)).len(), 0);
        assert_eq!(announced.0.len(), REMEMBERED_MAX);
        // Positive control: once they have expired, a new one is announced.
        assert_eq!(announced.take_new(vec![one("real", 300)], Millis(200)).len(), 1);
    }

    #[test]
    fn an_announcement_has_id_words_deadline_and_link() {
        let text = one("chat", 1_795_404_316_810).text();
        let id = ProposalId(Digest::of(b"chat")).short();
        for expected in [
            format!("proposal {id} waits for a vote until 2026-11-23 03:25:16.810 UTC").as_str(),
            "Start the service chat.",
            "words: badge pelican gecko iris barn velvet",
            "https://one.example.org/console/proposals/x",
            &format!("next: quorate approve {id}"),
        ] {
            assert!(text.contains(expected), "{expected}: {text}");
        }
        assert!(!text.contains("question"), "{text}");
        for (stage, title, next) in [
            (WaitingStage::Draft, format!("draft {id} waits for a proposer until"), "next: quorate approve"),
            (WaitingStage::Veto, format!("change {id} waits for a veto until"), "next: quorate reject"),
        ] {
            let text = Announcement { stage, ..one("chat", 1) }.text();
            assert!(text.starts_with(&title) && text.contains(next), "{text}");
        }
        let asked = Announcement { open_questions: 2, ..one("chat", 1) }.text();
        assert!(asked.contains("2 questions without an answer"), "{asked}");
    }
}
