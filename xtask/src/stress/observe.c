/* Loaded before the C library: creates the file QUORATE_TOUCHES once a test reads a clock, waits, uses a file, or makes
 * a socket, a pipe, a thread or a process. Calls of the main thread do not count: they are those of the test harness,
 * which runs the test on a thread of its own. Programs that the test starts load neither this library, since a
 * browser does not start beneath it, nor inherit the variable: QUORATE_PRELOAD_REST names what they load.
 *
 * No header that declares a watched function is included: every one of them takes and returns at most six words, in
 * registers, on both machines that Quorate supports, so that one definition passes all of them on. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <linux/fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>

typedef long word;
extern int getpid(void);

static char mark[4096];
static char marked;
static word (*system_call)(word, word, word, word, word, word, word);

__attribute__((constructor)) static void start(void) {
    *(void **)&system_call = dlsym(RTLD_NEXT, "syscall");
    const char *path = getenv("QUORATE_TOUCHES");
    if (path && strlen(path) < sizeof mark) strcpy(mark, path);
    unsetenv("QUORATE_TOUCHES");
    const char *rest = getenv("QUORATE_PRELOAD_REST");
    if (rest) setenv("LD_PRELOAD", rest, 1);
}

static void touch(void) {
    if (!mark[0] || marked || system_call(SYS_gettid, 0, 0, 0, 0, 0, 0) == getpid()) return;
    marked = 1;
    word flags = O_CREAT | O_WRONLY | O_CLOEXEC;
    word file = system_call(SYS_openat, AT_FDCWD, (word)mark, flags, 0600, 0, 0);
    if (file >= 0) system_call(SYS_close, file, 0, 0, 0, 0, 0);
}

#pragma GCC diagnostic ignored "-Wbuiltin-declaration-mismatch"

#define WATCH(name)                                                             \
    word name(word a, word b, word c, word d, word e, word f) {                 \
        static word (*next)(word, word, word, word, word, word);                \
        if (!next) *(void **)&next = dlsym(RTLD_NEXT, #name);                   \
        touch();                                                                \
        return next(a, b, c, d, e, f);                                          \
    }

/* Time. */
WATCH(clock_gettime) WATCH(gettimeofday) WATCH(time)
WATCH(nanosleep) WATCH(clock_nanosleep) WATCH(usleep) WATCH(sleep)
/* Disks. */
WATCH(open) WATCH(open64) WATCH(openat) WATCH(openat64) WATCH(creat) WATCH(opendir)
WATCH(mkdir) WATCH(rmdir) WATCH(rename) WATCH(unlink) WATCH(link) WATCH(symlink)
/* Sockets, and what an event loop needs. */
WATCH(socket) WATCH(socketpair) WATCH(getaddrinfo) WATCH(pipe) WATCH(pipe2)
WATCH(poll) WATCH(ppoll) WATCH(epoll_create1) WATCH(eventfd) WATCH(timerfd_create)
/* Processes and threads. */
WATCH(fork) WATCH(posix_spawn) WATCH(posix_spawnp) WATCH(execve) WATCH(pthread_create)

/* Locks and random numbers are made by system calls too, and touch nothing of this. */
word syscall(word number, word a, word b, word c, word d, word e, word f) {
    if (number != SYS_futex && number != SYS_getrandom && number != SYS_gettid) touch();
    return system_call(number, a, b, c, d, e, f);
}
