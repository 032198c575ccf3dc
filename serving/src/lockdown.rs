//! Seccomp filter of the gateway: no thread may open a connection. Once its listeners are up, the kernel
//! denies every thread, present and future, the system calls to reach out or to run another program.
//!
//! The filter cannot be undone. It leaves `accept4`, `read`, `write` and `socketpair` (whose two ends reach
//! only each other) allowed. The worker's stricter filter is installed from outside, by the init of its
//! sandbox.

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    apply_filter_all_threads,
};
use std::collections::BTreeMap;

/// Failure to install the filter.
#[derive(Debug, thiserror::Error)]
pub enum LockdownError {
    /// The filter compiler does not support this processor architecture.
    #[error("compile the system call filter")]
    Compile(#[from] seccompiler::BackendError),
    /// The kernel rejects the filter.
    #[error("install the system call filter")]
    Install(#[from] seccompiler::Error),
}

/// Calls to connect, to listen again, to run another program, and to inspect other processes.
const DENIED: &[libc::c_long] = &[
    libc::SYS_socket,
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_mount,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_bpf,
    libc::SYS_userfaultfd,
    libc::SYS_perf_event_open,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
];

/// Index of the `sendto` argument that holds an address; null on a connected socket.
const SENDTO_ADDRESS: u8 = 4;
/// Index of the `sendto` argument that holds flags.
const SENDTO_FLAGS: u8 = 3;

/// Denies outgoing connections to all threads of this process, permanently.
///
/// # Errors
/// See [`LockdownError`]; the process must not serve then.
pub fn deny_connections() -> Result<(), LockdownError> {
    #[cfg(target_arch = "x86_64")]
    apply_filter_all_threads(&deny_x32())?;
    Ok(apply_filter_all_threads(&program()?)?)
}

fn program() -> Result<BpfProgram, seccompiler::BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        DENIED.iter().map(|number| (*number, Vec::new())).collect();
    let fast_open = libc::MSG_FASTOPEN as u64;
    let address = SeccompCondition::new(SENDTO_ADDRESS, SeccompCmpArgLen::Qword, SeccompCmpOp::Ne, 0)?;
    let flags = SeccompCmpOp::MaskedEq(fast_open);
    let flags = SeccompCondition::new(SENDTO_FLAGS, SeccompCmpArgLen::Dword, flags, fast_open)?;
    let sendto = vec![SeccompRule::new(vec![address])?, SeccompRule::new(vec![flags])?];
    rules.insert(libc::SYS_sendto, sendto);
    // A message header is memory, which a filter cannot read: `sendmsg` is denied entirely.
    rules.insert(libc::SYS_sendmsg, Vec::new());
    rules.insert(libc::SYS_sendmmsg, Vec::new());
    let denied = SeccompAction::Errno(libc::EPERM as u32);
    SeccompFilter::new(rules, SeccompAction::Allow, denied, std::env::consts::ARCH.try_into()?)?.try_into()
}

/// Denies the x32 interface, in which every system call of x86-64 has a second number, with this bit. No code
/// here uses it, and a list of denied numbers would miss it.
#[cfg(target_arch = "x86_64")]
fn deny_x32() -> BpfProgram {
    const X32_BIT: u32 = 0x4000_0000;
    let instruction =
        |code: u32, jt: u8, jf: u8, k: u32| seccompiler::sock_filter { code: code as u16, jt, jf, k };
    vec![
        // Load the number, the first field of `seccomp_data`.
        instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        instruction(libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K, 0, 1, X32_BIT),
        instruction(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        instruction(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ]
}
