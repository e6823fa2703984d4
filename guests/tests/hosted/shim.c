// A stand-in for the machine: the guest program as a process, its vCPUs as threads, its registers as functions.
// Usage: PROGRAM VCPUS MEMORY_BYTES PARAMS INPUT_FILE. Console input is stdin.
#define _GNU_SOURCE
#include "internal.h"

#include <fcntl.h>
#include <pthread.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#define SHIM_FAILED 70
#define TIME_LIMIT_SECONDS 60

static u64 vcpu_count, memory;
static const char *params;
static int input_file;
static pthread_mutex_t device_lock = PTHREAD_MUTEX_INITIALIZER;

static void die(const char *what) {
    perror(what);
    _exit(SHIM_FAILED);
}

static void write_all(const void *buffer, u64 bytes) {
    for (const char *at = buffer; bytes > 0;) {
        ssize_t done = write(STDOUT_FILENO, at, bytes);
        if (done < 0) die("OUTPUT");
        at += done;
        bytes -= (u64)done;
    }
}

static void dma(enum device_register reg, u64 address) {
    if (address % 8 != 0) {
        fprintf(stderr, "misaligned descriptor\n");
        _exit(SHIM_FAILED);
    }
    struct dma *dma = (struct dma *)address;
    if (reg == OUTPUT) {
        write_all((void *)dma->buffer, dma->bytes);
        dma->done = dma->bytes;
        return;
    }
    ssize_t done = read(input_file, (void *)dma->buffer, dma->bytes < INPUT_MAX_BYTES ? dma->bytes : INPUT_MAX_BYTES);
    if (done < 0) die("INPUT");
    dma->done = (u64)done;
}

void device_write(enum device_register reg, u64 value) {
    if (reg == YIELD) {
        sched_yield();
        return;
    }
    if (reg == HALT) pthread_exit(NULL);
    pthread_mutex_lock(&device_lock);
    char byte = (char)value;
    switch (reg) {
    case CONSOLE: write_all(&byte, 1); break;
    case EXIT: _exit(byte & 0xFF);
    case INPUT:
    case OUTPUT: dma(reg, value); break;
    case MARK: break;
    default: die("write of a register that cannot be written");
    }
    pthread_mutex_unlock(&device_lock);
}

void device_write_byte(enum device_register reg, u8 value) { device_write(reg, value); }

static u64 console_byte(void) {
    struct pollfd ready = {STDIN_FILENO, POLLIN, 0};
    u8 byte;
    if (poll(&ready, 1, 0) == 1 && read(STDIN_FILENO, &byte, 1) == 1) return byte;
    return ~0ul;
}

u64 device_read(enum device_register reg) {
    struct timespec now;
    u64 random;
    switch (reg) {
    case CONSOLE: return console_byte();
    case CLOCK: clock_gettime(CLOCK_MONOTONIC, &now); return (u64)now.tv_sec * 1000000000 + (u64)now.tv_nsec;
    case RANDOM:
        if (getrandom(&random, 8, 0) != 8) die("getrandom");
        return random;
    default: die("read of a register that cannot be read"); return 0;
    }
}

void usable_memory(u64 bytes, struct span usable[2]) {
    void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) die("mmap");
    usable[0] = (struct span){(u64)at, bytes};
    usable[1] = (struct span){0, 0};
}

static void *vcpu(void *index) {
    guest_start((u64)index, vcpu_count, params, memory);
    return NULL;
}

int main(int argc, char **argv) {
    if (argc != 5) return SHIM_FAILED;
    vcpu_count = strtoul(argv[1], NULL, 10);
    memory = strtoul(argv[2], NULL, 10);
    params = argv[3];
    input_file = open(argv[4], O_RDONLY);
    if (input_file < 0) die(argv[4]);
    alarm(TIME_LIMIT_SECONDS);
    pthread_t threads[32];
    for (u64 i = 0; i < vcpu_count && i < 32; i++)
        if (pthread_create(&threads[i], NULL, vcpu, (void *)i) != 0) die("pthread_create");
    for (u64 i = 0; i < vcpu_count && i < 32; i++) pthread_join(threads[i], NULL);
    return 0;
}
