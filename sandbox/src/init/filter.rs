//! Seccomp filters of a sandbox. All are allow-lists; every other system call, present or future, fails with
//! `EPERM`. `clone3` fails with `ENOSYS`, so that callers fall back to `clone`, whose flags a filter can
//! inspect.
//!
//! The worker may read, write, map, wait, start threads and accept connections on the socket that was passed
//! to it. It cannot create, connect, bind or configure a socket, send a descriptor, or send to an address. It
//! cannot start a process or use any of the kernel's large interfaces.
//!
//! The ranks of a process sandbox have a wider filter, in [`process`].

mod process;

pub(super) use process::for_ranks;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Width, SeccompCmpOp as Compare, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch,
};
use std::collections::BTreeMap;

/// Namespace flags of `clone`, any of which would create a namespace inside the sandbox: NEWTIME, NEWNS,
/// NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET.
const NAMESPACE_FLAGS: u64 = 0x7e02_0080;
/// Flags of `clone` for a thread, as opposed to a process.
const THREAD_FLAGS: u64 = (libc::CLONE_THREAD | libc::CLONE_VM) as u64;
/// `MSG_FASTOPEN` makes `sendto` connect.
const FAST_OPEN: u64 = libc::MSG_FASTOPEN as u64;
/// `PR_SET_VMA`, by which allocators name their memory.
const PR_SET_VMA: u64 = 0x5356_4d41;
/// `ioctl` commands allowed without devices: make a descriptor non-blocking, query available bytes or a
/// terminal.
const PLAIN_IOCTLS: [u64; 4] = [libc::FIONBIO, libc::FIONREAD, libc::FIOCLEX, libc::TCGETS];
/// `ioctl` commands of sockets (`SIOC*`): a passed connection would reveal the host's interfaces.
const SOCKET_IOCTLS: std::ops::RangeInclusive<u64> = 0x8900..=0x89ff;
/// `fcntl` commands allowed: duplicate, flags, query seals. No locks, leases, signals or new seals.
const PLAIN_FCNTLS: [i32; 7] = [
    libc::F_DUPFD,
    libc::F_DUPFD_CLOEXEC,
    libc::F_GETFD,
    libc::F_SETFD,
    libc::F_GETFL,
    libc::F_SETFL,
    libc::F_GET_SEALS,
];

/// Calls allowed with any arguments, for the worker and its init.
const COMMON: &[i64] = &[
    // Descriptors and bytes.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_close,
    libc::SYS_fstat,
    libc::SYS_lseek,
    libc::SYS_accept4,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_ppoll,
    // Memory.
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    // Time, the process itself, and its end.
    libc::SYS_clock_gettime,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_getrandom,
    libc::SYS_futex,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_tgkill,
    libc::SYS_restart_syscall,
    libc::SYS_wait4,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// Calls that a worker needs beyond [`COMMON`]: a loader, a runtime with threads, read-only files.
const WORKER: &[i64] = &[
    libc::SYS_execve,
    libc::SYS_openat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_fstatfs,
    libc::SYS_statfs,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    libc::SYS_getcwd,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_pipe2,
    libc::SYS_close_range,
    libc::SYS_eventfd2,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_pselect6,
    libc::SYS_signalfd4,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_timerfd_gettime,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_shutdown,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_clock_getres,
    libc::SYS_gettimeofday,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_getcpu,
    libc::SYS_set_tid_address,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_membarrier,
    libc::SYS_mincore,
    libc::SYS_msync,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigsuspend,
    libc::SYS_waitid,
    libc::SYS_uname,
    libc::SYS_sysinfo,
    libc::SYS_times,
    libc::SYS_getrusage,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getppid,
    libc::SYS_getpgid,
    libc::SYS_getsid,
    libc::SYS_getpriority,
];

/// Older equivalents that only this architecture has.
#[cfg(target_arch = "x86_64")]
const WORKER_OLD: &[i64] = &[
    libc::SYS_open,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_readlink,
    libc::SYS_dup2,
    libc::SYS_poll,
    libc::SYS_select,
    libc::SYS_epoll_wait,
    libc::SYS_arch_prctl,
    libc::SYS_time,
    libc::SYS_getpgrp,
];
/// Older equivalents: none on this architecture.
#[cfg(not(target_arch = "x86_64"))]
const WORKER_OLD: &[i64] = &[];

/// Calls that an init needs beyond [`COMMON`]: its signal, its timer, its log files, and answers.
const INIT: &[i64] = &[libc::SYS_kill, libc::SYS_timerfd_settime, libc::SYS_ftruncate, libc::SYS_fdatasync];

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Returns the worker's filters; `devices` states whether it has device nodes, whose drivers use `ioctl`.
pub(super) fn for_worker(devices: bool) -> Result<Vec<BpfProgram>, seccompiler::BackendError> {
    let mut rules = allow(&[COMMON, WORKER, WORKER_OLD]);
    let mut some = |call, alternatives: Vec<SeccompRule>| rules.insert(call, alternatives);
    some(libc::SYS_sendto, vec![send_without_address()?]);
    some(libc::SYS_socketpair, vec![rule(&[equal(0, libc::AF_UNIX as u64)?])?]);
    let thread = masked(0, THREAD_FLAGS | NAMESPACE_FLAGS, THREAD_FLAGS)?;
    some(libc::SYS_clone, vec![rule(&[thread])?]);
    some(libc::SYS_prlimit64, vec![rule(&[equal(0, 0)?])?]);
    let names = [libc::PR_SET_NAME as u64, libc::PR_GET_NAME as u64, PR_SET_VMA];
    some(libc::SYS_prctl, any_of(0, &names)?);
    some(libc::SYS_fcntl, any_of(1, &PLAIN_FCNTLS.map(|command| command as u64))?);
    some(libc::SYS_ioctl, if devices { device_ioctls()? } else { any_of(1, &PLAIN_IOCTLS)? });
    // Allowed here and refused with the right error by the second program: the stricter result wins.
    some(libc::SYS_clone3, vec![]);
    Ok(vec![compile(rules, libc::EPERM)?, without_clone3()?])
}

/// Returns the filter of the sandbox's init, applied once the worker runs; `hands_over` states whether it
/// hands descriptors to its agent.
pub(super) fn for_init(hands_over: bool) -> Result<Vec<BpfProgram>, seccompiler::BackendError> {
    let mut rules = allow(&[COMMON, INIT]);
    rules.insert(libc::SYS_sendto, vec![send_without_address()?]);
    if hands_over {
        // The init's only sockets are connections that its agent opened.
        rules.insert(libc::SYS_sendmsg, vec![rule(&[equal(2, libc::MSG_NOSIGNAL as u64)?])?]);
    }
    Ok(vec![compile(rules, libc::EPERM)?])
}

fn allow(lists: &[&[i64]]) -> Rules {
    lists.iter().flat_map(|list| list.iter()).map(|call| (*call, vec![])).collect()
}

fn send_without_address() -> Result<SeccompRule, seccompiler::BackendError> {
    let no_address = SeccompCondition::new(4, Width::Qword, Compare::Eq, 0)?;
    rule(&[masked(3, FAST_OPEN, 0)?, no_address, equal(5, 0)?])
}

/// Drivers choose their own numbers, so with devices everything is allowed except the range of sockets.
fn device_ioctls() -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    let compare = |compare, value| SeccompCondition::new(1, Width::Dword, compare, value);
    let below = rule(&[compare(Compare::Lt, *SOCKET_IOCTLS.start())?])?;
    let above = rule(&[compare(Compare::Gt, *SOCKET_IOCTLS.end())?])?;
    Ok(vec![below, above])
}

/// Returns a separate filter for `clone3`, because one filter has one error number.
fn without_clone3() -> Result<BpfProgram, seccompiler::BackendError> {
    let refused = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    let rules = Rules::from([(libc::SYS_clone3, vec![])]);
    SeccompFilter::new(rules, SeccompAction::Allow, refused, architecture()?)?.try_into()
}

fn compile(rules: Rules, error: i32) -> Result<BpfProgram, seccompiler::BackendError> {
    let refused = SeccompAction::Errno(error.unsigned_abs());
    SeccompFilter::new(rules, refused, SeccompAction::Allow, architecture()?)?.try_into()
}

fn architecture() -> Result<TargetArch, seccompiler::BackendError> {
    std::env::consts::ARCH.try_into()
}

fn rule(conditions: &[SeccompCondition]) -> Result<SeccompRule, seccompiler::BackendError> {
    SeccompRule::new(conditions.to_vec())
}

fn equal(argument: u8, value: u64) -> Result<SeccompCondition, seccompiler::BackendError> {
    SeccompCondition::new(argument, Width::Dword, Compare::Eq, value)
}

fn masked(argument: u8, mask: u64, value: u64) -> Result<SeccompCondition, seccompiler::BackendError> {
    SeccompCondition::new(argument, Width::Qword, Compare::MaskedEq(mask), value)
}

fn any_of(argument: u8, values: &[u64]) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    values.iter().map(|value| rule(&[equal(argument, *value)?])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_filters_compile_and_fit() {
        let all = [for_worker(false), for_worker(true), for_init(false), for_init(true)];
        for programs in all.into_iter().chain([for_ranks(false), for_ranks(true)]) {
            for program in programs.expect("compiles") {
                assert!(program.len() < 4096, "the kernel's limit");
            }
        }
    }

    #[test]
    fn what_could_reach_out_is_on_no_list() {
        let forbidden = [
            libc::SYS_socket,
            libc::SYS_connect,
            libc::SYS_bind,
            libc::SYS_listen,
            libc::SYS_sendmsg,
            libc::SYS_sendmmsg,
            libc::SYS_setsockopt,
            libc::SYS_io_uring_setup,
            libc::SYS_io_uring_enter,
            libc::SYS_io_uring_register,
            libc::SYS_ptrace,
            libc::SYS_process_vm_readv,
            libc::SYS_process_vm_writev,
            libc::SYS_pidfd_open,
            libc::SYS_pidfd_getfd,
            libc::SYS_mount,
            libc::SYS_umount2,
            libc::SYS_pivot_root,
            libc::SYS_open_tree,
            libc::SYS_move_mount,
            libc::SYS_fsopen,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_bpf,
            libc::SYS_perf_event_open,
            libc::SYS_keyctl,
            libc::SYS_add_key,
            libc::SYS_userfaultfd,
            libc::SYS_kexec_load,
            libc::SYS_init_module,
            libc::SYS_finit_module,
            libc::SYS_memfd_create,
            libc::SYS_execveat,
        ];
        for call in forbidden {
            for list in [COMMON, WORKER, WORKER_OLD, INIT] {
                assert!(!list.contains(&call), "system call {call}");
            }
        }
    }
}
