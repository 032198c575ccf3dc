//! Raw system calls, as an attacker makes them.

/// A result of zero or more, or an error number.
pub(crate) type SystemCallResult<T = ()> = Result<T, i32>;

/// Makes a system call. Addresses are passed as numbers, as an attacker would. Every argument in this program
/// is either a number or the address of a value that outlives the call.
pub(crate) fn call(number: i64, arguments: &[usize]) -> SystemCallResult<usize> {
    let a = |at| arguments.get(at).copied().unwrap_or(0);
    // SAFETY: see above. The calls made here change this test's own process or fail, and each runs in a
    // process that may be corrupted.
    let result = unsafe { libc::syscall(number, a(0), a(1), a(2), a(3), a(4), a(5)) };
    usize::try_from(result).map_err(|_| last_error())
}

/// Returns the error of the last call.
pub(crate) fn last_error() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(-1)
}

/// Returns the address of a value, as a number.
pub(crate) fn address<T: ?Sized>(value: &T) -> usize {
    std::ptr::from_ref(value).cast::<u8>() as usize
}

/// Returns the address of a value that the kernel may write to.
pub(crate) fn address_mut<T: ?Sized>(value: &mut T) -> usize {
    std::ptr::from_mut(value).cast::<u8>() as usize
}

/// Runs an attempt in a child process and returns its outcome from the exit status.
pub(crate) fn in_a_child(attempt: impl FnOnce() -> SystemCallResult) -> SystemCallResult {
    // SAFETY: this program has one thread.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let status = attempt().err().unwrap_or(0);
        // SAFETY: takes no pointer and does not return.
        unsafe { libc::_exit(status) }
    }
    let mut status = 0;
    // SAFETY: the status outlives the call.
    let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
    match waited {
        pid if pid == child && libc::WIFEXITED(status) => match libc::WEXITSTATUS(status) {
            0 => Ok(()),
            errno => Err(errno),
        },
        _ => Err(-1),
    }
}
