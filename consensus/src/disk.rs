//! The disk thread: makes batches durable in groups, then says what may be said. The raft thread never
//! waits for it, so heartbeats do not either. On a full disk it waits for space and tries again: until then
//! nothing is durable, so nothing is said.

use crate::core::NumberedBatch;
use crate::driver::Event;
use crate::error::LogError;
use crate::metrics::Counters;
use crate::store::{Batch, LogStore};
use crate::transport::Transport;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use std::time::{Duration, Instant};

/// Batches made durable by one sync: what gathers while the one before is running, within reason.
const GROUP_MAX: usize = 256;

/// Pauses between two tries on a full disk, doubling from the first to the longest. Short enough that nobody
/// who frees space waits for us, and that a replica told to stop does so at once.
const SPACE_PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));

/// Runs until the raft thread is gone or the disk fails.
pub(crate) fn run(
    store: &Arc<dyn LogStore>,
    transport: &Arc<dyn Transport>,
    batches: &Receiver<NumberedBatch>,
    events: &Sender<Event>,
    counters: &Counters,
) {
    while let Ok(first) = batches.recv() {
        let mut group = vec![first.batch];
        let (mut number, mut messages) = (first.number, first.messages);
        while group.len() < GROUP_MAX
            && let Ok(next) = batches.try_recv()
        {
            group.push(next.batch);
            number = number.max(next.number);
            messages.extend(next.messages);
        }
        let begin = Instant::now();
        if let Err(error) = write(store, &group, events) {
            // What reached the disk is unknown now: nothing of it may be said, and nothing more written.
            let _ = events.send(Event::LogFailed(error));
            return;
        }
        if group.iter().any(|batch| batch.sync) {
            counters.synced(begin.elapsed());
        }
        // Before the messages: an answer to one of them must not overtake it, or raft would hear of a vote
        // won while it believes that older batches are not on disk.
        if events.send(Event::Persisted(number)).is_err() {
            return;
        }
        // Straight from here: a follower's answer spares a detour over the raft thread.
        if !messages.is_empty() {
            transport.send(messages);
        }
    }
}

/// Writes a group, waiting for space as long as the raft thread lives.
fn write(store: &Arc<dyn LogStore>, group: &[Batch], events: &Sender<Event>) -> Result<(), LogError> {
    let (mut pause, longest) = SPACE_PAUSES;
    loop {
        match store.write(group) {
            Err(error) if error.may_pass() => {
                if events.send(Event::NoSpace).is_err() {
                    return Err(error);
                }
                std::thread::sleep(pause);
                pause = longest.min(2 * pause);
            }
            outcome => return outcome,
        }
    }
}
