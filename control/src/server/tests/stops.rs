//! Tests of a graceful stop of a replica, as by SIGTERM, over real connections.

use super::hostile::Plane;
use super::in_time;

/// Returns the index of the replica that reports itself as the leader.
async fn leader(plane: &Plane, indices: &[usize]) -> Option<usize> {
    for index in indices {
        if plane.page(*index, "/metrics").await.1.contains("\nquorate_control_is_leader 1\n") {
            return Some(*index);
        }
    }
    None
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_stopped_transfers_leadership_first() {
    let mut plane = Plane::start().await;
    let handed_over = async {
        loop {
            for index in 0..3 {
                plane.until_ready(index).await;
            }
            let Some(leads) = leader(&plane, &[0, 1, 2]).await else { continue };
            plane.stop(leads).await;
            // Without a handover the others would still wait for its heartbeats.
            let others = [(leads + 1) % 3, (leads + 2) % 3];
            let handed_over = leader(&plane, &others).await.is_some();
            plane.start_again(leads).await;
            // On a busy machine the leader may have found no follower to hand over to in time.
            if handed_over {
                break;
            }
        }
    };
    in_time(handed_over).await;
    plane.end().await;
}
