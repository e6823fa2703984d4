// What the service on port 7000 understands: a line in, a line out.
//   SET n v   OK n            v is on the disk when this is answered
//   GET n     VALUE n v | NONE n
//   COUNT     COUNT n         values set since the disk was made
//   CLOCK     CLOCK m r t     CLOCK_MONOTONIC and CLOCK_REALTIME in ns, and the kernel's ticks of 40 ms
//   TICKS     TICKS i h u     local timer interrupts of all CPUs, the ticks that they handled in 1/100 s, uptime in 1/100 s
//   SPIN n    SPUN x          x follows n steps of xorshift64 from 1
//   STATS     STATS ...       see load.c; zeros unless the job is mixed
//   PING      PONG
//   STOP      BYE             the guest unmounts its disk and powers off
#define _GNU_SOURCE
#include "work.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { TICK_NS = 40000000 };

static void read_text(const char *path, char *text, size_t size) {
    int file = open(path, O_RDONLY | O_CLOEXEC);
    size_t used = 0;
    for (ssize_t bytes = 1; file >= 0 && bytes > 0 && used < size - 1; used += bytes > 0 ? (size_t)bytes : 0)
        bytes = read(file, text + used, size - 1 - used);
    if (file >= 0) close(file);
    text[used] = 0;
}

// The numbers behind "LOC:", one a CPU.
static u64 timer_interrupts(void) {
    static char text[2 * PAGE];
    read_text("/proc/interrupts", text, sizeof text);
    char *at = strstr(text, "LOC:");
    u64 sum = 0;
    for (at = at ? at + 4 : text + strlen(text);;) {
        char *end;
        u64 value = strtoull(at, &end, 10);
        if (end == at) return sum;
        sum += value;
        at = end;
    }
}

// The first line of /proc/stat. A CPU that is not idle adds a tick to it in each timer interrupt that finds a tick due, also
// when more than one is: so what it lacks, beside the uptime, are ticks that came too late to be handled.
static u64 handled_ticks(void) {
    enum { FIELDS = 8 }; // what follows them is part of them
    static char text[2 * PAGE];
    read_text("/proc/stat", text, sizeof text);
    char *at = text + strcspn(text, " ");
    u64 sum = 0;
    for (int i = 0; i < FIELDS; i++) sum += strtoull(at, &at, 10);
    return sum;
}

// "123.45 ..." as 12345.
static u64 uptime_centis(void) {
    char text[64], *point;
    read_text("/proc/uptime", text, sizeof text);
    u64 seconds = strtoull(text, &point, 10);
    return seconds * 100 + (*point == '.' ? strtoull(point + 1, NULL, 10) : 0);
}

static bool parse_number(const char *text, u64 below, u64 *value) {
    char *end;
    errno = 0;
    *value = text ? strtoull(text, &end, 10) : 0;
    return text && *text >= '0' && *text <= '9' && !*end && !errno && *value < below;
}

static void answer_set(const char *key_text, const char *value, char answer[ANSWER_BYTES]) {
    u64 key;
    if (!parse_number(key_text, STORE_KEYS, &key)) {
        snprintf(answer, ANSWER_BYTES, "ERROR the key is a number below %d\n", STORE_KEYS);
    } else if (!value || !*value || strlen(value) >= STORE_VALUE_BYTES) {
        snprintf(answer, ANSWER_BYTES, "ERROR the value is 1 to %d bytes\n", STORE_VALUE_BYTES - 1);
    } else {
        store_set(key, value);
        snprintf(answer, ANSWER_BYTES, "OK %lu\n", key);
    }
}

static void answer_get(const char *key_text, char answer[ANSWER_BYTES]) {
    u64 key;
    if (!parse_number(key_text, STORE_KEYS, &key)) {
        snprintf(answer, ANSWER_BYTES, "ERROR the key is a number below %d\n", STORE_KEYS);
        return;
    }
    const char *value = store_value(key);
    if (value) snprintf(answer, ANSWER_BYTES, "VALUE %lu %s\n", key, value);
    else snprintf(answer, ANSWER_BYTES, "NONE %lu\n", key);
}

static void answer_spin(const char *steps_text, char answer[ANSWER_BYTES]) {
    u64 steps;
    if (parse_number(steps_text, 1ul << 36, &steps)) snprintf(answer, ANSWER_BYTES, "SPUN %016lx\n", mix(1, steps));
    else snprintf(answer, ANSWER_BYTES, "ERROR the steps are a number below 2^36\n");
}

static void answer_ticks(char answer[ANSWER_BYTES]) {
    u64 interrupts = timer_interrupts(), handled = handled_ticks();
    snprintf(answer, ANSWER_BYTES, "TICKS %lu %lu %lu\n", interrupts, handled, uptime_centis());
}

static void answer_clock(char answer[ANSWER_BYTES]) {
    u64 ticks = clock_ns(CLOCK_MONOTONIC_COARSE) / TICK_NS;
    snprintf(answer, ANSWER_BYTES, "CLOCK %lu %lu %lu\n", clock_ns(CLOCK_MONOTONIC), clock_ns(CLOCK_REALTIME), ticks);
}

bool protocol_answer(char *line, char answer[ANSWER_BYTES]) {
    char *rest = line;
    const char *word = strsep(&rest, " "), *first = strsep(&rest, " ");
    if (!strcmp(word, "SET")) answer_set(first, rest, answer);
    else if (!strcmp(word, "GET")) answer_get(first, answer);
    else if (!strcmp(word, "SPIN")) answer_spin(first, answer);
    else if (!strcmp(word, "CLOCK")) answer_clock(answer);
    else if (!strcmp(word, "STATS")) load_stats(answer);
    else if (!strcmp(word, "COUNT")) snprintf(answer, ANSWER_BYTES, "COUNT %lu\n", store_count());
    else if (!strcmp(word, "TICKS")) answer_ticks(answer);
    else if (!strcmp(word, "PING")) snprintf(answer, ANSWER_BYTES, "PONG\n");
    else if (!strcmp(word, "STOP")) snprintf(answer, ANSWER_BYTES, "BYE\n");
    else snprintf(answer, ANSWER_BYTES, "ERROR unknown: %.32s\n", word);
    return !strcmp(word, "STOP");
}
