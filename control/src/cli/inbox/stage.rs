//! Stages in which a proposal waits for members. Each of them is announced once.

use protocol::ProposalId;
use protocol::api::ProposalState;
use serde::Serialize;
use std::fmt;

/// Stage in which a proposal waits for members.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum WaitingStage {
    /// No member has signed it: the first that approves it proposes it.
    Draft,
    /// It is open for votes.
    Vote,
    /// Its quorum is reached. It takes effect after its waiting time, unless a member vetoes it.
    Veto,
}

impl WaitingStage {
    /// Returns the stage of a proposal that control shows in this state; none if it waits for no member.
    pub(super) fn of(state: ProposalState) -> Option<Self> {
        match state {
            ProposalState::Draft => Some(Self::Draft),
            ProposalState::Open => Some(Self::Vote),
            ProposalState::Waiting => Some(Self::Veto),
            ProposalState::Approved
            | ProposalState::Rejected
            | ProposalState::Expired
            | ProposalState::Stale
            | ProposalState::Withdrawn
            | ProposalState::Void => None,
        }
    }

    /// Returns the word for a proposal in this stage.
    pub(super) fn noun(self) -> &'static str {
        match self {
            Self::Draft => "draft",
            Self::Vote => "proposal",
            Self::Veto => "change",
        }
    }

    /// Returns the act for which it waits.
    pub(super) fn awaited(self) -> &'static str {
        match self {
            Self::Draft => "a proposer",
            Self::Vote => "a vote",
            Self::Veto => "a veto",
        }
    }

    /// Returns the command with which a member acts on it.
    pub(super) fn command(self) -> &'static str {
        match self {
            Self::Draft | Self::Vote => "approve",
            Self::Veto => "reject",
        }
    }
}

/// Name of a notice: a proposal in one of its stages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct NoticeId {
    pub(super) proposal: ProposalId,
    pub(super) stage: WaitingStage,
}

impl fmt::Display for NoticeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stage = match self.stage {
            WaitingStage::Draft => "draft",
            WaitingStage::Vote => "vote",
            WaitingStage::Veto => "veto",
        };
        write!(f, "{}-{stage}", self.proposal)
    }
}
