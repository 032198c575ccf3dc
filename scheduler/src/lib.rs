//! Cluster state machine: the replicated state ([`Cluster`]), its transitions ([`apply`]), the planner
//! ([`plan()`]), and explanations of the state ([`why()`]).
//!
//! It is pure: clock readings are an argument, and the same log gives the same bytes on every replica. It
//! grants nothing: every order names a certificate that its node verifies independently.
//!
//! On the leader, the shell (`control`) applies an [`Action::Lead`], creates an [`Observed`], and records
//! every agent's request in it. It then repeats three steps: [`plan()`], [`Observed::begin_eviction`], and a
//! proposal of [`Plan::command`]. It answers agents with [`desired_for`] and [`route_table`]. Start reading
//! at [`Cluster`] and [`plan()`].

/// Unit tests share the integration tests' clusters, which name this crate.
#[cfg(test)]
extern crate self as scheduler;

mod allocation;
mod apply;
mod audit;
mod clock;
mod cluster;
mod command;
mod desired;
mod draft;
mod dry_run;
mod fair_share;
mod former;
mod history;
mod invariants;
mod job_data;
mod job_desired;
mod job_draft;
mod job_fit;
mod job_orders;
mod job_views;
mod jobs;
mod kept_data;
pub mod limits;
mod observed;
mod outcomes;
mod plan;
mod project_fit;
mod project_views;
mod queue;
mod returning;
mod roll_out;
mod status;
mod timekeeping;
mod usage;
mod view;
mod views;
mod why;
mod wraps;

pub use apply::{apply, apply_bytes, enrol_answer, refused_job_data, tick_is_due};
pub use audit::Audit;
pub use clock::{ClockDeviation, ClockReadings, ClusterTime, LeaderTime, WallTime};
pub use cluster::{
    BurnedProposal, ClosedProposal, Cluster, DraftProposal, Holding, HoldingPhase, Leadership, OpenProposal,
    Service, ServicePhase, Slot, StandingToken,
};
pub use command::{
    Action, Actor, Command, GangPlan, GangSlotPlan, IdempotencyKey, JobRequest, OrderPlan, Refusal, Reply,
    SlotName, Step,
};
pub use desired::{NodeAssignment, desired_for, route_table};
pub use dry_run::dry_run;
pub use fair_share::ShareBook;
pub use former::FormerHolder;
pub use history::history_page;
pub use invariants::{Invariant, Violation};
pub use job_data::{job_data_views, member_job_data, stored_job_data};
pub use job_desired::{NodeJobAssignment, desired_jobs};
pub use job_fit::check_fits;
pub use job_views::{JobSelection, job_events, job_view, job_views};
pub use jobs::{
    AttemptEnd, EndCause, EndedHolder, Job, JobBook, JobHolding, JobHoldingPhase, JobSlot, JobSlotName,
    JobState, RankGpu, array_id,
};
pub use kept_data::KeptJobData;
pub use observed::{EvictionInProgress, Liveness, Observed, ObservedNode};
pub use plan::{Dropped, Plan, Reason, Waiting, WaitingJob, plan, refused_in_its_generation};
pub use project_views::project_list;
pub use roll_out::{ReturnTarget, RollOut, RollOutPhase};
pub use status::{LeaderView, status};
pub use usage::{Rebill, RebillFault, RebillSum, UsageBook, price_versions};
pub use view::ClusterView;
pub use views::{
    limit_of, limits_not_enforced, node_views, proposal_view, proposal_views, proposals_after, service_view,
    service_views,
};
pub use why::{Question, why};
pub use wraps::member_wraps;
