// What every guest program is written against. The contract with the machine is `bare-guest.md`: a static
// ELF at CPL 3, all vCPUs entering at once, eight device registers. A program supplies `program_params`,
// `program_run` and, if it needs one, `program_setup`.
//
// Data written by different vCPUs belongs on different pages (`OWN_PAGE`): the machine isolates vCPUs by page,
// so a shared page is a conflict even where the bytes are not shared. Tests that want conflicts say so.
#ifndef SAMSARA_GUEST_H
#define SAMSARA_GUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef uint8_t u8;
typedef uint32_t u32;
typedef unsigned long u64; // not uint64_t: %lu must fit on every compiler

_Static_assert(sizeof(u64) == 8, "x86-64 only");

#define PAGE 4096ul
#define MIB (1ul << 20)
#define MAX_VCPUS 16ul
#define OWN_PAGE __attribute__((aligned(4096)))
#define NORETURN __attribute__((noreturn))

// Exit statuses of a run.
enum { RIGHT = 0, WRONG = 1, BAD_PARAMS = 2 };

// ---- device registers -------------------------------------------------------------------------------------

#define DEVICE_PAGE 0xD0000000ul

enum device_register {
    CONSOLE = 0x00,
    EXIT = 0x08,
    CLOCK = 0x10,
    RANDOM = 0x18,
    YIELD = 0x20,
    HALT = 0x28,
    MARK = 0x30,
    INPUT = 0x38,
    OUTPUT = 0x40,
};

#define INPUT_MAX_BYTES MIB

struct dma {
    u64 buffer;
    u64 bytes;
    u64 done;
} __attribute__((aligned(8)));

#ifdef SAMSARA_HOSTED
// Tests run the programs as threads of a process; the registers are then functions.
void device_write(enum device_register reg, u64 value);
u64 device_read(enum device_register reg);
void device_write_byte(enum device_register reg, u8 value);
#else
static inline void device_write(enum device_register reg, u64 value) {
    __asm__ volatile("movq %0, (%1)" : : "r"(value), "r"(DEVICE_PAGE + reg) : "memory");
}

static inline u64 device_read(enum device_register reg) {
    u64 value;
    __asm__ volatile("movq (%1), %0" : "=r"(value) : "r"(DEVICE_PAGE + reg) : "memory");
    return value;
}

static inline void device_write_byte(enum device_register reg, u8 value) {
    __asm__ volatile("movb %0, (%1)" : : "q"(value), "r"(DEVICE_PAGE + reg) : "memory");
}
#endif

// ---- vCPUs and their lives --------------------------------------------------------------------------------

#define LINE_BYTES 2048

// One vCPU's own state, on pages that no other vCPU writes.
struct vcpu {
    u64 index;
    u64 count;
    u64 line_bytes;
    char line[LINE_BYTES];
    struct dma dma;
} OWN_PAGE;

// Run by vCPU 0 alone, before any vCPU enters `program_run`. Allocate and check sizes here.
void program_setup(struct vcpu *cpu);
// Run by every vCPU. When it has returned on all of them, the run ends with status 0.
void program_run(struct vcpu *cpu);

// Ends the run with a line `<program text>` on the console.
NORETURN void fail(struct vcpu *cpu, u64 status, const char *format, ...) __attribute__((format(printf, 3, 4)));
NORETURN void exit_with(u64 status);
// Stops this vCPU for good.
NORETURN void halt(void);

// ---- console ----------------------------------------------------------------------------------------------

// Formats %lu %lx (with 0 and a width), %s and %c into this vCPU's line; whole lines leave by one OUTPUT.
void say(struct vcpu *cpu, const char *format, ...) __attribute__((format(printf, 2, 3)));
// Sends an unfinished line.
void say_flush(struct vcpu *cpu);

// INPUT into `buffer`: the count of bytes read, 0 at the end of the input.
u64 input_read(struct vcpu *cpu, void *buffer, u64 bytes);
void output_write(struct vcpu *cpu, const void *buffer, u64 bytes);

// ---- parameters -------------------------------------------------------------------------------------------

// One `key=value` a program accepts. `value` starts as the default and is final before `program_run`.
struct param {
    const char *key;
    u64 value;
    u64 low, high;
    const char *choices; // "a|b|c": the value is the index of the one named; NULL for a number
};

#define NUMBER(key, initial, low, high) {key, initial, low, high, NULL}
#define CHOICE(key, initial, choices) {key, initial, 0, 0, choices}
#define PARAMS_END {NULL, 0, 0, 0, NULL}

extern struct param program_params[];

static inline u64 param(u64 index) { return program_params[index].value; }
// Ends the run with BAD_PARAMS when `text` has a key or a value that is not accepted.
void params_parse(struct vcpu *cpu, const char *text);
// The name of the choice that `param(index)` is, into `name`.
void param_choice(u64 index, u64 choice, char *name, u64 name_bytes);

// ---- waiting and locks ------------------------------------------------------------------------------------

// A wait loop's state. PAUSE, and now and then YIELD (parameter `spin`: pauses before the first one, 0 for never):
// while a chunk spins, what this vCPU wrote is not yet seen by the others.
struct wait {
    u64 spins;
    u64 limit;
};

struct wait wait_begin(void);
void wait_step(struct wait *wait);

#define WAIT_UNTIL(condition)                                                                                      \
    do {                                                                                                           \
        struct wait wait_ = wait_begin();                                                                          \
        while (!(condition)) wait_step(&wait_);                                                                    \
    } while (0)

// What was written must be seen by the others soon: end the chunk (not when `spin=0`).
void publish(void);

// All vCPUs meet. Everything written before is seen by everybody after.
void barrier(struct vcpu *cpu);

struct spin_lock {
    u64 held;
};
void spin_lock(struct spin_lock *lock);
void spin_unlock(struct spin_lock *lock);

struct ticket_lock {
    u64 next, serving;
};
void ticket_lock(struct ticket_lock *lock);
void ticket_unlock(struct ticket_lock *lock);

static inline u64 load(const u64 *word) { return __atomic_load_n(word, __ATOMIC_ACQUIRE); }
static inline void store(u64 *word, u64 value) { __atomic_store_n(word, value, __ATOMIC_RELEASE); }
static inline u64 fetch_add(u64 *word, u64 value) { return __atomic_fetch_add(word, value, __ATOMIC_SEQ_CST); }
static inline u64 exchange(u64 *word, u64 value) { return __atomic_exchange_n(word, value, __ATOMIC_SEQ_CST); }

// ---- memory -----------------------------------------------------------------------------------------------

void *memcpy(void *to, const void *from, size_t bytes);
void *memset(void *to, int value, size_t bytes);
void *memmove(void *to, const void *from, size_t bytes);
int memcmp(const void *left, const void *right, size_t bytes);

struct span {
    u64 start, bytes;
};

extern u64 memory_bytes; // of the guest, as the loader said
// First address past guest memory.
u64 memory_end(void);
// Page-aligned memory from what lies between the program and the loader's top; ends the run with BAD_PARAMS when it
// does not fit. Only in `program_setup`. Not zeroed.
void *alloc(struct vcpu *cpu, u64 bytes);
// What is left (below 3 GiB, from 4 GiB), whole pages; either may be empty.
void alloc_rest(struct span rest[2]);

// ---- small things programs share --------------------------------------------------------------------------

// The part of [0, total) that is this vCPU's: contiguous, in vCPU order, sizes differ by one at most.
struct range {
    u64 from, to;
};
struct range share_of(const struct vcpu *cpu, u64 total);
// The same in whole groups of `each`, of which the last may be smaller: for items that are to be on whole pages.
struct range share_of_groups(const struct vcpu *cpu, u64 total, u64 each);

// splitmix64 of a counter: a good 64-bit number for every index, the same whoever computes it.
static inline u64 mix(u64 index) {
    u64 z = index * 0x9E3779B97F4A7C15ul + 0x9E3779B97F4A7C15ul;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ul;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBul;
    return z ^ (z >> 31);
}

// A number in [-1, 1) made of 53 bits of `mix(index)`.
static inline double unit(u64 index) {
    return (double)(mix(index) >> 11) * 0x1p-52 - 1.0;
}

static inline u64 bits_of(double value) {
    u64 bits;
    __builtin_memcpy(&bits, &value, sizeof bits);
    return bits;
}

// One item's part of a checksum that is a wrapping sum, so that parts can be added in any order.
static inline u64 checksum_part(u64 bits, u64 index) { return mix(bits ^ mix(index)); }

// Partial results of the vCPUs, one page each.
struct partial {
    u64 value;
    u64 other;
    double error;
} OWN_PAGE;

#endif
