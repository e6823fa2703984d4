// The background of `mixed`: every CPU computes, all the time but for rests of `rest_ms`, and checks what it computes,
// sleeps of `sleep_ms` are measured on every CPU, a file is written and synced over and over.
#define _GNU_SOURCE
#include "work.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { CHURN_PIECES = 16, WORK_STEPS = 2000 };

// Counts that STATS answers. `longest_ns` is the longest sleep, be it one that still lasts because its timer was lost;
// tests compare it with the pauses they caused.
static struct {
    _Atomic u64 rounds, wrong, sleeps, early, late, longest_ns, writes;
} OWN_PAGE stats;
static struct {
    pthread_mutex_t lock;
    u64 left, right; // equal, under the lock
} OWN_PAGE pair = {.lock = PTHREAD_MUTEX_INITIALIZER};
static u64 lanes[MAX_CPUS][3][LANE_WORDS] OWN_PAGE;
static _Atomic u64 asleep_since[MAX_CPUS] OWN_PAGE; // 0: awake
static u64 rest_ms, sleep_ns, late_ns, pause_ms;
static pthread_t churner;
static _Atomic bool stopping;

// Only this thread: the service is to be answered at once all the same.
static void be_nice(void) { setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), 19); }

static void step_pair(void) {
    pthread_mutex_lock(&pair.lock);
    pair.left++;
    if (pair.left != pair.right + 1) atomic_fetch_add(&stats.wrong, 1);
    pair.right++;
    pthread_mutex_unlock(&pair.lock);
}

static void *compute(void *argument) {
    u64 cpu = (u64)argument;
    u64(*lane)[LANE_WORDS] = lanes[cpu];
    pin_to(cpu);
    be_nice();
    lane_start(lane[0], cpu);
    lane_next(lane[1], lane[0], lane[0], WORK_STEPS);
    for (;;) {
        lane_next(lane[2], lane[0], lane[0], WORK_STEPS);
        if (memcmp(lane[1], lane[2], sizeof lane[1])) atomic_fetch_add(&stats.wrong, 1);
        step_pair();
        atomic_fetch_add(&stats.rounds, 1);
        if (rest_ms) sleep_ms(rest_ms);
    }
    return NULL;
}

static void note_sleep(u64 slept_ns) {
    atomic_fetch_add(&stats.sleeps, 1);
    if (slept_ns < sleep_ns) atomic_fetch_add(&stats.early, 1);
    if (slept_ns > late_ns) atomic_fetch_add(&stats.late, 1);
    u64 longest = atomic_load(&stats.longest_ns);
    while (slept_ns > longest && !atomic_compare_exchange_weak(&stats.longest_ns, &longest, slept_ns)) continue;
}

static void *sleep_and_measure(void *argument) {
    u64 cpu = (u64)argument;
    pin_to(cpu);
    const struct timespec time = {.tv_sec = (time_t)(sleep_ns / 1000000000), .tv_nsec = (long)(sleep_ns % 1000000000)};
    for (;;) {
        u64 before = asleep_since[cpu] = clock_ns(CLOCK_MONOTONIC);
        nanosleep(&time, NULL);
        asleep_since[cpu] = 0;
        note_sleep(clock_ns(CLOCK_MONOTONIC) - before);
    }
    return NULL;
}

static void *churn(void *argument) {
    const char *folder = argument;
    static u64 piece[LANE_WORDS];
    char path[256];
    snprintf(path, sizeof path, "%s/churn", folder);
    int file = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (file < 0) fail("%s: %s", path, strerror(errno));
    for (u64 i = 0; !stopping; i++) {
        lane_start(piece, i);
        off_t at = (off_t)(i % CHURN_PIECES) * PAGE;
        if (pwrite(file, piece, sizeof piece, at) != sizeof piece || fsync(file)) fail("%s: %s", path, strerror(errno));
        atomic_fetch_add(&stats.writes, 1);
        sleep_ms(pause_ms);
    }
    close(file);
    return NULL;
}

void load_start(void) {
    rest_ms = number("rest_ms", 0, 0, 1000000);
    sleep_ns = number("sleep_ms", 10, 1, 10000) * 1000000;
    late_ns = number("late_ms", 1000, 10, 1000000) * 1000000;
    pause_ms = number("pause_ms", 100, 0, 1000000);
    pthread_t thread;
    for (u64 cpu = 0; cpu < cpu_count(); cpu++) {
        start_thread(&thread, compute, (void *)cpu);
        start_thread(&thread, sleep_and_measure, (void *)cpu);
    }
    start_thread(&churner, churn, (void *)data_mount());
}

void load_stop(void) {
    stopping = true;
    pthread_join(churner, NULL);
}

static u64 longest_sleep(void) {
    u64 longest = stats.longest_ns, now = clock_ns(CLOCK_MONOTONIC);
    for (int cpu = 0; cpu < MAX_CPUS; cpu++) {
        u64 since = asleep_since[cpu];
        if (since && since < now && now - since > longest) longest = now - since;
    }
    return longest;
}

void load_stats(char answer[ANSWER_BYTES]) {
    const char *format = "STATS rounds %lu wrong %lu sleeps %lu early %lu late %lu longest_ns %lu writes %lu\n";
    snprintf(answer, ANSWER_BYTES, format,
             stats.rounds, stats.wrong, stats.sleeps, stats.early, stats.late, longest_sleep(), stats.writes);
}
