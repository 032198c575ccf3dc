//! Seccomp filter of the ranks of a process sandbox. It is an allow-list too, as wide as foreign programs
//! need: processes, files, and sockets within the network namespace of the sandbox.
//!
//! It leaves out what would widen the sandbox or reach a large interface of the kernel: namespaces, mounts,
//! tracing, other users' ids, keys, BPF (also as a socket's filter), `io_uring`, `userfaultfd`, performance
//! counters, modules, raw and packet sockets, and every protocol but TCP, UDP and unix sockets. The route
//! table is readable (`getifaddrs`), because NCCL and gloo search their device there.

use super::{
    BpfProgram, COMMON, Compare, PLAIN_FCNTLS, PLAIN_IOCTLS, PR_SET_VMA, Rules, SeccompCondition,
    SeccompRule, WORKER, WORKER_OLD, Width, allow, any_of, compile, device_ioctls, equal, masked, rule,
    without_clone3,
};
use super::{NAMESPACE_FLAGS, SOCKET_IOCTLS};

type FilterResult<T> = Result<T, seccompiler::BackendError>;

/// Calls that ranks need beyond those of an engine.
const RANK: &[i64] = &[
    // Files of their own.
    libc::SYS_ftruncate,
    libc::SYS_truncate,
    libc::SYS_fallocate,
    libc::SYS_fadvise64,
    libc::SYS_readahead,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_flock,
    libc::SYS_copy_file_range,
    libc::SYS_sendfile,
    libc::SYS_splice,
    libc::SYS_mkdirat,
    libc::SYS_unlinkat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_linkat,
    libc::SYS_symlinkat,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_utimensat,
    libc::SYS_umask,
    libc::SYS_chdir,
    libc::SYS_fchdir,
    libc::SYS_getxattr,
    libc::SYS_lgetxattr,
    libc::SYS_fgetxattr,
    libc::SYS_listxattr,
    libc::SYS_llistxattr,
    libc::SYS_flistxattr,
    libc::SYS_inotify_init1,
    libc::SYS_inotify_add_watch,
    libc::SYS_inotify_rm_watch,
    libc::SYS_preadv2,
    libc::SYS_pwritev2,
    // Sockets that they made themselves: none is passed in.
    libc::SYS_accept,
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_listen,
    // Processes within the process namespace.
    libc::SYS_kill,
    libc::SYS_tkill,
    libc::SYS_setpgid,
    libc::SYS_setsid,
    libc::SYS_getgroups,
    libc::SYS_getresuid,
    libc::SYS_getresgid,
    libc::SYS_capget,
    libc::SYS_setpriority,
    libc::SYS_getitimer,
    libc::SYS_setitimer,
    libc::SYS_timer_create,
    libc::SYS_timer_settime,
    libc::SYS_timer_gettime,
    libc::SYS_timer_getoverrun,
    libc::SYS_timer_delete,
    libc::SYS_get_robust_list,
    // Memory and processors, as numeric libraries place them.
    libc::SYS_mbind,
    libc::SYS_get_mempolicy,
    libc::SYS_set_mempolicy,
    libc::SYS_mlock,
    libc::SYS_munlock,
    libc::SYS_sched_getparam,
    libc::SYS_sched_getscheduler,
    libc::SYS_sched_get_priority_max,
    libc::SYS_sched_get_priority_min,
    libc::SYS_sched_setaffinity,
];

/// Older equivalents that only this architecture has.
#[cfg(target_arch = "x86_64")]
const RANK_OLD: &[i64] = &[
    libc::SYS_fork,
    libc::SYS_vfork,
    libc::SYS_pipe,
    libc::SYS_creat,
    libc::SYS_mkdir,
    libc::SYS_rmdir,
    libc::SYS_unlink,
    libc::SYS_rename,
    libc::SYS_link,
    libc::SYS_symlink,
    libc::SYS_chmod,
    libc::SYS_utime,
    libc::SYS_utimes,
    libc::SYS_futimesat,
    libc::SYS_getdents,
    libc::SYS_epoll_create,
    libc::SYS_eventfd,
    libc::SYS_signalfd,
    libc::SYS_inotify_init,
    libc::SYS_alarm,
    libc::SYS_pause,
    libc::SYS_getrlimit,
];
/// Older equivalents: none on this architecture.
#[cfg(not(target_arch = "x86_64"))]
const RANK_OLD: &[i64] = &[];

/// `fcntl` commands of ranks beyond an engine's: locks, and the size of a pipe.
const LOCK_FCNTLS: [i32; 8] = [
    libc::F_GETLK,
    libc::F_SETLK,
    libc::F_SETLKW,
    libc::F_OFD_GETLK,
    libc::F_OFD_SETLK,
    libc::F_OFD_SETLKW,
    libc::F_SETPIPE_SZ,
    libc::F_GETPIPE_SZ,
];
/// `ioctl` commands that read a network interface: name, list, flags, address, broadcast, netmask, MTU,
/// hardware address, index.
const INTERFACE_IOCTLS: [u64; 9] = [0x8910, 0x8912, 0x8913, 0x8915, 0x8919, 0x891b, 0x8921, 0x8927, 0x8933];
/// `prctl` operations: names, the signal at a parent's death, a subreaper, and reading what is in force.
const PRCTLS: [i32; 9] = [
    libc::PR_SET_NAME,
    libc::PR_GET_NAME,
    libc::PR_SET_PDEATHSIG,
    libc::PR_GET_PDEATHSIG,
    libc::PR_SET_CHILD_SUBREAPER,
    libc::PR_GET_DUMPABLE,
    libc::PR_CAPBSET_READ,
    libc::PR_GET_NO_NEW_PRIVS,
    libc::PR_SET_NO_NEW_PRIVS,
];
/// Options of `SOL_SOCKET` that ranks may set. No filter programs, no marks, no devices.
const SOCKET_OPTIONS: [i32; 15] = [
    libc::SO_REUSEADDR,
    libc::SO_REUSEPORT,
    libc::SO_KEEPALIVE,
    libc::SO_LINGER,
    libc::SO_SNDBUF,
    libc::SO_RCVBUF,
    libc::SO_RCVTIMEO,
    libc::SO_SNDTIMEO,
    libc::SO_RCVLOWAT,
    libc::SO_BROADCAST,
    libc::SO_DONTROUTE,
    libc::SO_OOBINLINE,
    libc::SO_PASSCRED,
    libc::SO_PRIORITY,
    libc::SO_TIMESTAMP,
];
/// Options of TCP: no delay, segment size, cork, keep-alive (3), retries, linger, deferred accept, window,
/// quick acknowledgement, congestion control, user timeout, fast open (2), unsent data, and the rest of what
/// HTTP and RPC libraries set. No upper layer protocol (31), no repair mode, no zero copy.
const TCP_OPTIONS: [i32; 16] = [
    libc::TCP_NODELAY,
    libc::TCP_MAXSEG,
    libc::TCP_CORK,
    libc::TCP_KEEPIDLE,
    libc::TCP_KEEPINTVL,
    libc::TCP_KEEPCNT,
    libc::TCP_SYNCNT,
    libc::TCP_LINGER2,
    libc::TCP_DEFER_ACCEPT,
    libc::TCP_WINDOW_CLAMP,
    libc::TCP_QUICKACK,
    libc::TCP_CONGESTION,
    libc::TCP_USER_TIMEOUT,
    libc::TCP_FASTOPEN,
    libc::TCP_FASTOPEN_CONNECT,
    libc::TCP_NOTSENT_LOWAT,
];
/// Options of IPv4: type of service, time to live, path MTU discovery, errors, late choice of a port.
const V4_OPTIONS: [i32; 5] =
    [libc::IP_TOS, libc::IP_TTL, libc::IP_MTU_DISCOVER, libc::IP_RECVERR, libc::IP_BIND_ADDRESS_NO_PORT];
/// Options of IPv6, likewise, and whether a socket takes IPv4 too.
const V6_OPTIONS: [i32; 5] = [
    libc::IPV6_V6ONLY,
    libc::IPV6_UNICAST_HOPS,
    libc::IPV6_TCLASS,
    libc::IPV6_MTU_DISCOVER,
    libc::IPV6_RECVERR,
];
/// Bits of a socket's type, without its flags.
const SOCKET_TYPE: u64 = 0xf;
/// Flags of messages that ranks do without. Out-of-band data on unix sockets and zero copy are rarely used
/// paths of the kernel, and each was a way out of a sandbox once.
const MESSAGE_FLAGS: u64 = (libc::MSG_OOB | libc::MSG_ZEROCOPY) as u64;

/// Returns the filters of ranks; `devices` states whether they have device nodes, whose drivers use `ioctl`.
pub(in crate::init) fn for_ranks(devices: bool) -> FilterResult<Vec<BpfProgram>> {
    let mut rules = allow(&[COMMON, WORKER, WORKER_OLD, RANK, RANK_OLD]);
    allow_sockets(&mut rules)?;
    let mut some = |call, alternatives: Vec<SeccompRule>| rules.insert(call, alternatives);
    // Threads and processes, in no new namespace.
    some(libc::SYS_clone, vec![rule(&[masked(0, NAMESPACE_FLAGS, 0)?])?]);
    some(libc::SYS_prlimit64, vec![rule(&[equal(0, 0)?])?]);
    let operations = PRCTLS.map(|operation| operation as u64);
    some(libc::SYS_prctl, any_of(0, &[&operations[..], &[PR_SET_VMA]].concat())?);
    let commands: Vec<u64> = PLAIN_FCNTLS.iter().chain(&LOCK_FCNTLS).map(|command| *command as u64).collect();
    some(libc::SYS_fcntl, any_of(1, &commands)?);
    let interfaces = any_of(1, &INTERFACE_IOCTLS)?;
    let others = if devices { device_ioctls()? } else { any_of(1, &PLAIN_IOCTLS)? };
    some(libc::SYS_ioctl, [interfaces, others].concat());
    // A named pipe is a file; a device is not.
    some(libc::SYS_mknodat, vec![is_pipe(2)?]);
    #[cfg(target_arch = "x86_64")]
    some(libc::SYS_mknod, vec![is_pipe(1)?]);
    // Allowed here and refused with the right error by the second program: the stricter result wins.
    some(libc::SYS_clone3, vec![]);
    debug_assert!(INTERFACE_IOCTLS.iter().all(|command| SOCKET_IOCTLS.contains(command)));
    Ok(vec![compile(rules, libc::EPERM)?, without_clone3()?])
}

fn allow_sockets(rules: &mut Rules) -> FilterResult<()> {
    let mut some = |call, alternatives: Vec<SeccompRule>| rules.insert(call, alternatives);
    let unix = libc::AF_UNIX as u64;
    let mut kinds = Vec::new();
    for kind in [libc::SOCK_STREAM, libc::SOCK_DGRAM, libc::SOCK_SEQPACKET] {
        kinds.push(rule(&[equal(0, unix)?, of_type(kind)?])?);
    }
    let families = [libc::AF_INET, libc::AF_INET6];
    for (kind, protocol) in [(libc::SOCK_STREAM, libc::IPPROTO_TCP), (libc::SOCK_DGRAM, libc::IPPROTO_UDP)] {
        for family in families.map(|family| family as u64) {
            for protocol in [0, protocol as u64] {
                kinds.push(rule(&[equal(0, family)?, of_type(kind)?, equal(2, protocol)?])?);
            }
        }
    }
    let route = libc::NETLINK_ROUTE as u64;
    for kind in [libc::SOCK_RAW, libc::SOCK_DGRAM] {
        kinds.push(rule(&[equal(0, libc::AF_NETLINK as u64)?, of_type(kind)?, equal(2, route)?])?);
    }
    some(libc::SYS_socket, kinds);
    some(libc::SYS_socketpair, vec![rule(&[equal(0, unix)?])?]);
    let mut options = Vec::new();
    for (level, names) in [
        (libc::SOL_SOCKET, &SOCKET_OPTIONS[..]),
        (libc::IPPROTO_TCP, &TCP_OPTIONS),
        (libc::IPPROTO_IP, &V4_OPTIONS),
        (libc::IPPROTO_IPV6, &V6_OPTIONS),
    ] {
        for name in names {
            options.push(rule(&[equal(1, level as u64)?, equal(2, *name as u64)?])?);
        }
    }
    some(libc::SYS_setsockopt, options);
    for (call, flags) in [
        (libc::SYS_sendto, 3),
        (libc::SYS_recvfrom, 3),
        (libc::SYS_sendmsg, 2),
        (libc::SYS_recvmsg, 2),
        (libc::SYS_sendmmsg, 3),
        (libc::SYS_recvmmsg, 3),
    ] {
        some(call, vec![rule(&[masked(flags, MESSAGE_FLAGS, 0)?])?]);
    }
    Ok(())
}

fn of_type(kind: i32) -> FilterResult<SeccompCondition> {
    SeccompCondition::new(1, Width::Dword, Compare::MaskedEq(SOCKET_TYPE), kind as u64)
}

fn is_pipe(argument: u8) -> FilterResult<SeccompRule> {
    rule(&[masked(argument, u64::from(libc::S_IFMT), u64::from(libc::S_IFIFO))?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_get_no_call_that_widens_their_sandbox() {
        let forbidden = [
            libc::SYS_mount,
            libc::SYS_umount2,
            libc::SYS_pivot_root,
            libc::SYS_chroot,
            libc::SYS_open_tree,
            libc::SYS_move_mount,
            libc::SYS_fsopen,
            libc::SYS_fsconfig,
            libc::SYS_fsmount,
            libc::SYS_mount_setattr,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_ptrace,
            libc::SYS_process_vm_readv,
            libc::SYS_process_vm_writev,
            libc::SYS_pidfd_open,
            libc::SYS_pidfd_getfd,
            libc::SYS_kcmp,
            libc::SYS_setuid,
            libc::SYS_setgid,
            libc::SYS_setresuid,
            libc::SYS_setresgid,
            libc::SYS_setgroups,
            libc::SYS_capset,
            libc::SYS_bpf,
            libc::SYS_perf_event_open,
            libc::SYS_keyctl,
            libc::SYS_add_key,
            libc::SYS_request_key,
            libc::SYS_userfaultfd,
            libc::SYS_io_uring_setup,
            libc::SYS_io_uring_enter,
            libc::SYS_io_uring_register,
            libc::SYS_kexec_load,
            libc::SYS_kexec_file_load,
            libc::SYS_init_module,
            libc::SYS_finit_module,
            libc::SYS_reboot,
            libc::SYS_swapon,
            libc::SYS_syslog,
            libc::SYS_settimeofday,
            libc::SYS_clock_settime,
            libc::SYS_name_to_handle_at,
            libc::SYS_open_by_handle_at,
            libc::SYS_quotactl,
            libc::SYS_quotactl_fd,
            libc::SYS_sethostname,
            libc::SYS_personality,
            libc::SYS_sync,
            libc::SYS_syncfs,
            libc::SYS_execveat,
            libc::SYS_memfd_create,
            libc::SYS_shmget,
            libc::SYS_msgget,
            libc::SYS_mq_open,
        ];
        for call in forbidden {
            for list in [COMMON, WORKER, WORKER_OLD, RANK, RANK_OLD] {
                assert!(!list.contains(&call), "system call {call}");
            }
        }
    }

    #[test]
    fn no_list_names_a_call_that_has_conditions() {
        let conditional = [
            libc::SYS_socket,
            libc::SYS_setsockopt,
            libc::SYS_sendmsg,
            libc::SYS_sendmmsg,
            libc::SYS_sendto,
            libc::SYS_ioctl,
            libc::SYS_fcntl,
            libc::SYS_prctl,
            libc::SYS_prlimit64,
            libc::SYS_clone,
            libc::SYS_clone3,
            libc::SYS_mknodat,
        ];
        assert!(conditional.iter().all(|call| !RANK.contains(call) && !RANK_OLD.contains(call)));
    }
}
