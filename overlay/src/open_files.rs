//! Limit of open files, matched to the connections that a daemon's listeners may hold.
//!
//! Every daemon calls [`fit`] once, before it listens. It raises the soft limit (often 1,024) as far as the
//! system allows. If that is too little, it lowers the listeners' bounds: fair admission then decides which
//! connection yields, instead of the kernel refusing every accept. A reserve stays for the rest of the
//! process.

use crate::limits::Limits;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Raises this process's limit of open files to the need of `listeners` and `reserve` other files. Returns
/// bounds that fit the limit actually obtained, and warns if they are lower.
#[must_use]
pub fn fit<const N: usize>(reserve: usize, listeners: [Limits; N]) -> [Limits; N] {
    let connections: usize = listeners.iter().map(Limits::descriptors_max).sum();
    let wanted = connections.saturating_add(reserve);
    let obtained = raise(wanted);
    if obtained < wanted {
        tracing::warn!(
            obtained,
            wanted,
            connections = available(obtained, reserve).min(connections),
            "too few open files allowed for all connections; raise LimitNOFILE or `ulimit -Hn`"
        );
    }
    fit_to(obtained, reserve, listeners)
}

/// Raises the soft limit to `wanted`, or as far as permitted. Returns the limit in force.
fn raise(wanted: usize) -> usize {
    let limit = || getrlimit(Resource::RLIMIT_NOFILE);
    // A limit that cannot be read is not known to be too low.
    let Ok((soft, hard)) = limit() else { return wanted };
    let raised = u64::try_from(wanted).unwrap_or(u64::MAX).min(hard);
    if soft < raised {
        // A refusal shows in the limit that is read below.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, raised, hard);
    }
    limit().map_or(wanted, |(soft, _)| usize::try_from(soft).unwrap_or(usize::MAX))
}

fn fit_to<const N: usize>(obtained: usize, reserve: usize, listeners: [Limits; N]) -> [Limits; N] {
    let wanted: usize = listeners.iter().map(Limits::descriptors_max).sum();
    let available = available(obtained, reserve);
    if available >= wanted {
        return listeners;
    }
    listeners.map(|limits| limits.scaled(available, wanted))
}

/// Returns the number of files that connections may take: half of all if the reserve would be more.
fn available(obtained: usize, reserve: usize) -> usize {
    obtained.saturating_sub(reserve).max(obtained / 2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn bounds_stay_where_the_limit_is_enough() {
        let limits = Limits::default();
        let enough = limits.descriptors_max() + 100;
        let [same] = fit_to(enough, 100, [limits.clone()]);
        assert_eq!(same, limits);
        let [lowered] = fit_to(enough - 1, 100, [limits.clone()]);
        assert!(lowered.connections_max < limits.connections_max);
    }

    #[test]
    fn at_the_usual_1024_two_listeners_share_what_the_reserve_leaves() {
        let public = Limits { connections_max: 4096, ..Limits::default() };
        let [public, workers] = fit_to(1024, 256, [public, Limits::default()]);
        assert!((400..500).contains(&public.connections_max), "{}", public.connections_max);
        assert!((90..110).contains(&workers.connections_max), "{}", workers.connections_max);
    }

    #[test]
    fn the_soft_limit_is_raised_and_never_beyond_the_hard_one() {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        let limit = raise(usize::try_from(hard).unwrap_or(usize::MAX).saturating_add(1));
        assert_eq!(limit as u64, hard);
        assert!(raise(1) > 1, "a limit is never lowered");
    }

    proptest! {
        #[test]
        fn connections_never_take_the_reserve(
            obtained in 64usize..100_000,
            reserve in 0usize..2_000,
            connections_max in 1usize..10_000,
        ) {
            let wanted = [Limits { connections_max, ..Limits::default() }, Limits::default()];
            let fitted = fit_to(obtained, reserve, wanted);
            let taken: usize = fitted.iter().map(Limits::descriptors_max).sum();
            // Each bound stays positive, which adds eight at most.
            prop_assert!(taken <= obtained.saturating_sub(reserve).max(obtained / 2) + 8);
            prop_assert!(fitted.iter().all(|limits| limits.connections_max > 0 && limits.handshakes_max > 0));
        }
    }
}
