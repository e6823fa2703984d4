// What every job needs of the system: output, the disk, threads, the end.
#define _GNU_SOURCE
#include "work.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

// glibc picks its string functions by CPUID, and the guest kernel does not keep AVX registers across context switches.
#define NO_AVX \
    "GLIBC_TUNABLES=glibc.cpu.hwcaps=-AVX,-AVX2,-AVX512F,-AVX512VL,-AVX512BW,-AVX_Fast_Unaligned_Load"

static bool data_mounted;

bool is_init(void) { return getpid() == 1; }

static void mount_or_fail(const char *what, const char *where, const char *type) {
    mkdir(where, 0755);
    if (mount(what, where, type, MS_NOATIME, NULL)) fail("cannot mount %s on %s: %s", what, where, strerror(errno));
}

void system_start(void) {
    mount_or_fail("proc", "/proc", "proc");
    mount_or_fail("sysfs", "/sys", "sysfs");
    mount_or_fail("devtmpfs", "/dev", "devtmpfs");
    mount_or_fail("tmpfs", "/tmp", "tmpfs");
    args_from_file("/proc/cmdline");
}

void system_stop(int how) {
    if (!is_init()) _exit(0);
    data_unmount();
    output_drain();
    reboot(how);
    say("samsara: still running: %s", strerror(errno));
    for (;;) pause();
}

static void say_line(const char *prefix, const char *format, va_list values) {
    char line[512];
    size_t used = (size_t)snprintf(line, sizeof line, "%s", prefix);
    int more = vsnprintf(line + used, sizeof line - used - 1, format, values);
    used += more < 0 ? 0 : (size_t)more;
    if (used > sizeof line - 2) used = sizeof line - 2;
    line[used++] = '\n';
    for (size_t from = 0; from < used;) {
        ssize_t bytes = write(STDOUT_FILENO, line + from, used - from);
        if (bytes < 0 && errno != EINTR) return;
        if (bytes > 0) from += (size_t)bytes;
    }
}

void output_drain(void) { tcdrain(STDOUT_FILENO); }

void say(const char *format, ...) {
    va_list values;
    va_start(values, format);
    say_line("", format, values);
    va_end(values);
}

void fail(const char *format, ...) {
    va_list values;
    va_start(values, format);
    say_line("wrong: ", format, values);
    va_end(values);
    if (!is_init()) _exit(1);
    sync();
    output_drain();
    reboot(RB_POWER_OFF);
    for (;;) pause();
}

void write_file(const char *path, const char *text) {
    int file = open(path, O_WRONLY | O_CLOEXEC);
    size_t length = strlen(text);
    if (file < 0 || write(file, text, length) != (ssize_t)length) fail("%s: %s", path, strerror(errno));
    close(file);
}

const char *data_mount(void) {
    if (!is_init()) return arg("dir", ".");
    if (data_mounted) return "/data";
    const char *disk = arg("disk", "/dev/vda");
    if (!strcmp(disk, "none")) mount_or_fail("tmpfs", "/data", "tmpfs");
    else mount_or_fail(disk, "/data", "ext2");
    data_mounted = true;
    return "/data";
}

void data_unmount(void) {
    sync();
    if (data_mounted && umount("/data")) say("samsara: cannot unmount /data: %s", strerror(errno));
    data_mounted = false;
}

u64 cpu_count(void) {
    long count = sysconf(_SC_NPROCESSORS_ONLN);
    return count < 1 ? 1 : count > MAX_CPUS ? MAX_CPUS : (u64)count;
}

u64 clock_ns(int clock) {
    struct timespec now;
    if (clock_gettime(clock, &now)) fail("clock %d: %s", clock, strerror(errno));
    return (u64)now.tv_sec * 1000000000u + (u64)now.tv_nsec;
}

void sleep_ms(u64 ms) {
    struct timespec time = {.tv_sec = (time_t)(ms / 1000), .tv_nsec = (long)(ms % 1000) * 1000000};
    while (nanosleep(&time, &time) && errno == EINTR) continue;
}

void start_thread(pthread_t *thread, void *(*run)(void *), void *argument) {
    int error = pthread_create(thread, NULL, run, argument);
    if (error) fail("no thread: %s", strerror(error));
}

// A thread that moved would be one more thing that differs between runs.
void pin_to(u64 cpu) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu % cpu_count(), &set);
    if (sched_setaffinity(0, sizeof set, &set)) fail("cannot run on CPU %lu: %s", cpu, strerror(errno));
}

int spawn(char *const arguments[]) {
    static char *const environment[] = {NO_AVX, "LD_BIND_NOW=1", "PATH=/bin:/usr/bin", "HOME=/", "TERM=vt100", NULL};
    pid_t child = fork();
    if (child < 0) fail("fork: %s", strerror(errno));
    if (child) return child;
    execve(arguments[0], arguments, environment);
    say("samsara: %s: %s", arguments[0], strerror(errno));
    _exit(127);
}
