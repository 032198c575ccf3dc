//! Disk loop: makes batches durable in groups, then sends the messages that depend on them.
//!
//! It blocks only its own thread: the raft loop never waits for it, so heartbeats are not delayed. On a full
//! disk it waits for space and retries. Until then nothing is durable, so nothing is acknowledged.

use crate::core::NumberedBatch;
use crate::driver::Event;
use crate::error::LogError;
use crate::metrics::ReplicaCounters;
use crate::store::{Batch, LogStore};
use crate::transport::Transport;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::time::{Instant, sleep};

/// Limit on the batches of one sync: those that queue up during the previous sync, within reason.
const GROUP_MAX: usize = 256;

/// Pauses between two attempts on a full disk, doubling from the first to the longest. Short enough that
/// freed space is used promptly, and that a stopping replica stops promptly.
const SPACE_PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));

/// Runs until the raft loop has ended or the disk fails.
pub(crate) async fn run(
    store: Arc<dyn LogStore>,
    transport: Arc<dyn Transport>,
    mut batches: UnboundedReceiver<NumberedBatch>,
    events: UnboundedSender<Event>,
    counters: Arc<ReplicaCounters>,
) {
    while let Some(first) = batches.recv().await {
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
        if let Err(error) = write(&store, &group, &events).await {
            // The state of the disk is unknown now: nothing may be acknowledged, and nothing more written.
            let _ = events.send(Event::LogFailed(error));
            return;
        }
        if group.iter().any(|batch| batch.sync) {
            counters.synced(begin.elapsed());
        }
        // Before the messages: a response to one of them must not overtake this event. Otherwise raft would
        // learn of a won vote while it assumes that older batches are not on disk.
        if events.send(Event::Persisted(number)).is_err() {
            return;
        }
        // Sent directly from here: a follower's response need not pass through the raft loop again.
        if !messages.is_empty() {
            transport.send(messages);
        }
    }
}

/// Writes a group, waiting for space as long as the raft loop runs.
async fn write(
    store: &Arc<dyn LogStore>,
    group: &[Batch],
    events: &UnboundedSender<Event>,
) -> Result<(), LogError> {
    let (mut pause, longest) = SPACE_PAUSES;
    loop {
        match store.write(group) {
            Err(error) if error.is_disk_full() => {
                if events.send(Event::NoSpace).is_err() {
                    return Err(error);
                }
                sleep(pause).await;
                pause = longest.min(2 * pause);
            }
            outcome => return outcome,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::BatchNumber;
    use crate::store::SimulatedDisk;
    use crate::transport::SimulatedNetwork;
    use protocol::ReplicaId;
    use tokio::sync::mpsc;

    #[tokio::test(start_paused = true)]
    async fn a_write_to_a_full_disk_is_retried_until_the_raft_loop_ends() {
        let disk = SimulatedDisk::new();
        let _ = disk.open();
        disk.set_out_of_space(true);
        let (batches, to_disk) = mpsc::unbounded_channel();
        let (events, mut inbox) = mpsc::unbounded_channel();
        let (store, transport) =
            (Arc::new(disk.clone()), Arc::new(SimulatedNetwork::new().transport(ReplicaId(1))));
        let running = tokio::spawn(run(store, transport, to_disk, events, Arc::default()));
        let batch = Batch { sync: true, ..Batch::default() };
        let sent = batches.send(NumberedBatch { number: BatchNumber(7), batch, messages: Vec::new() });
        assert!(sent.is_ok());
        for _ in 0..3 {
            assert!(matches!(inbox.recv().await, Some(Event::NoSpace)));
        }
        disk.set_out_of_space(false);
        let written = loop {
            match inbox.recv().await {
                Some(Event::NoSpace) => {}
                event => break event,
            }
        };
        assert!(matches!(written, Some(Event::Persisted(BatchNumber(7)))));
        disk.set_out_of_space(true);
        let batch = Batch { sync: true, ..Batch::default() };
        assert!(batches.send(NumberedBatch { number: BatchNumber(8), batch, messages: Vec::new() }).is_ok());
        assert!(matches!(inbox.recv().await, Some(Event::NoSpace)));
        drop((batches, inbox));
        running.await.expect("it ends though there never was space");
    }
}
