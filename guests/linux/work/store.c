// Numbered values, kept in an append-only file of lines "KEY VALUE\n". What is set is acknowledged only after
// store_commit has brought it to the disk; a last line that a power cut left without its end is dropped.
#include "work.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PENDING_BYTES = 16384, RECORD_BYTES = STORE_VALUE_BYTES + 24 };

static char values[STORE_KEYS][STORE_VALUE_BYTES];
static u64 count;
static int file;
static char pending[PENDING_BYTES];
static size_t pending_bytes;

static void remember(u64 key, const char *value) {
    snprintf(values[key], STORE_VALUE_BYTES, "%s", value);
    count++;
}

// Reads the lines of `text`, and answers how many bytes whole lines take.
static size_t load_lines(char *text, size_t bytes) {
    size_t used = 0;
    for (char *end; (end = memchr(text + used, '\n', bytes - used)); used = (size_t)(end - text) + 1) {
        *end = 0;
        char *rest;
        u64 key = strtoull(text + used, &rest, 10);
        if (key >= STORE_KEYS || *rest != ' ' || strlen(rest + 1) >= STORE_VALUE_BYTES)
            fail("the store has a bad line: %s", text + used);
        remember(key, rest + 1);
    }
    return used;
}

static void load(void) {
    static char text[PENDING_BYTES];
    size_t kept = 0;
    off_t whole = 0;
    for (ssize_t bytes; (bytes = read(file, text + kept, sizeof text - kept)) != 0;) {
        if (bytes < 0) fail("the store: %s", strerror(errno));
        size_t filled = kept + (size_t)bytes, used = load_lines(text, filled);
        kept = filled - used;
        if (kept > RECORD_BYTES) fail("the store has a line without an end");
        memmove(text, text + used, kept);
        whole += (off_t)used;
    }
    if (kept && ftruncate(file, whole)) fail("the store: %s", strerror(errno));
}

void store_open(const char *folder) {
    char path[256];
    snprintf(path, sizeof path, "%s/store.log", folder);
    file = open(path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (file < 0) fail("%s: %s", path, strerror(errno));
    load();
}

bool store_has_room(void) { return sizeof pending - pending_bytes >= RECORD_BYTES; }

void store_set(u64 key, const char *value) {
    remember(key, value);
    pending_bytes += (size_t)snprintf(pending + pending_bytes, RECORD_BYTES, "%lu %s\n", key, value);
}

const char *store_value(u64 key) { return values[key][0] ? values[key] : NULL; }

u64 store_count(void) { return count; }

void store_commit(void) {
    for (size_t from = 0; from < pending_bytes;) {
        ssize_t bytes = write(file, pending + from, pending_bytes - from);
        if (bytes < 0 && errno != EINTR) fail("the store: %s", strerror(errno));
        if (bytes > 0) from += (size_t)bytes;
    }
    if (pending_bytes && fdatasync(file)) fail("the store: %s", strerror(errno));
    pending_bytes = 0;
}

void store_close(void) { close(file); }
