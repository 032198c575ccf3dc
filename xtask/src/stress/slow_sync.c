/* Loaded before the C library: makes each fsync, fdatasync and sync_file_range wait QUORATE_SYNC_DELAY_MS first. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static void wait_first(void) {
    const char *text = getenv("QUORATE_SYNC_DELAY_MS");
    long delay = text ? strtol(text, NULL, 10) : 0;
    struct timespec pause = {delay / 1000, delay % 1000 * 1000000};
    nanosleep(&pause, NULL);
}

int fsync(int file) {
    wait_first();
    return (int)syscall(SYS_fsync, file);
}

int fdatasync(int file) {
    wait_first();
    return (int)syscall(SYS_fdatasync, file);
}

int sync_file_range(int file, off_t offset, off_t bytes, unsigned int flags) {
    wait_first();
    return (int)syscall(SYS_sync_file_range, file, offset, bytes, flags);
}
