// Many files, written in parallel and synced, then read back from the disk.
#define _GNU_SOURCE
#include "work.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { MAX_FILES = 4096, PIECE_WORDS = PAGE / 8 };

static u64 files, bytes, workers;
static u64 sums[MAX_FILES]; // of what was read back
static const char *folder;

static void file_path(char path[256], u64 file) { snprintf(path, 256, "%s/file-%04lu", folder, file); }

// The piece of file `file` that starts at byte `at`.
static void make_piece(u64 piece[PIECE_WORDS], u64 file, u64 at) {
    u64 value = mix((file + 1) << 32 | (at + 1), 8);
    for (u64 i = 0; i < PIECE_WORDS; i++) piece[i] = value = mix(value, 1);
}

static u64 piece_bytes(u64 at) { return bytes - at < PAGE ? bytes - at : PAGE; }

static void write_one(u64 file) {
    char path[256];
    u64 piece[PIECE_WORDS];
    file_path(path, file);
    int handle = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (handle < 0) fail("%s: %s", path, strerror(errno));
    for (u64 at = 0; at < bytes; at += PAGE) {
        make_piece(piece, file, at);
        if (write(handle, piece, piece_bytes(at)) != (ssize_t)piece_bytes(at))
            fail("%s: written short at %lu: %s", path, at, strerror(errno));
    }
    if (fsync(handle)) fail("%s: %s", path, strerror(errno));
    close(handle);
}

static void read_one(u64 file) {
    char path[256];
    u64 expected[PIECE_WORDS], piece[PIECE_WORDS], sum = file;
    file_path(path, file);
    int handle = open(path, O_RDONLY | O_CLOEXEC);
    if (handle < 0) fail("%s: %s", path, strerror(errno));
    for (u64 at = 0; at < bytes; at += PAGE) {
        make_piece(expected, file, at);
        memset(piece, 0, sizeof piece);
        if (read(handle, piece, piece_bytes(at)) != (ssize_t)piece_bytes(at))
            fail("%s: read short at %lu: %s", path, at, strerror(errno));
        if (memcmp(piece, expected, piece_bytes(at))) fail("%s: other bytes after %lu", path, at);
        for (u64 i = 0; i < piece_bytes(at) / 8; i++) sum = fold(sum, piece[i]);
    }
    close(handle);
    sums[file] = sum;
}

static void *write_share(void *argument) {
    for (u64 file = (u64)argument; file < files; file += workers) write_one(file);
    return NULL;
}

static void *read_share(void *argument) {
    for (u64 file = (u64)argument; file < files; file += workers) read_one(file);
    return NULL;
}

static void in_parallel(void *(*run)(void *)) {
    pthread_t threads[MAX_CPUS];
    for (u64 i = 1; i < workers; i++) start_thread(&threads[i], run, (void *)i);
    run((void *)0);
    for (u64 i = 1; i < workers; i++) pthread_join(threads[i], NULL);
}

void job_files(void) {
    files = number("files", 16, 1, MAX_FILES);
    bytes = number("bytes", 65536, 1, 1u << 30);
    workers = number("workers", cpu_count() < 2 ? 2 : cpu_count(), 1, MAX_CPUS);
    folder = data_mount();
    in_parallel(write_share);
    say("samsara: files written");
    sync();
    if (is_init()) write_file("/proc/sys/vm/drop_caches", "3\n");
    in_parallel(read_share);
    u64 answer = 0;
    for (u64 file = 0; file < files; file++) answer = fold(answer, sums[file]);
    say("answer: %016lx", answer);
}
