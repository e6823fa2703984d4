// What the groups of litmus tests share. See ../litmus.c.
#ifndef SAMSARA_LITMUS_H
#define SAMSARA_LITMUS_H

#include "guest.h"

// Where a test's variables are: within one page (and cache line where that matters), or each on a page of its own.
enum layout { SAME, APART };

struct test {
    const char *name;
    u64 roles; // vCPUs it takes; more vCPUs form more groups, or join in
    void (*run)(struct vcpu *cpu, const struct test *test, enum layout layout);
};

extern const struct test outcome_tests[], lock_tests[], storm_tests[];

struct settings {
    u64 iterations;
    u64 batch;
    u64 cut;
    bool info;
};
extern struct settings settings;

// Zeroed before every test.
extern u64 *variables;
u64 variables_bytes(u64 vcpus);

// Results of the outcome tests: `results_of(vcpu)` has two arrays of `batch` words on pages of their own.
u64 *results_of(u64 vcpu);
u64 results_bytes(void);

NORETURN void forbidden(struct vcpu *cpu, const struct test *test, enum layout layout, u64 index, const u64 *values,
                        u64 count);

static inline const char *layout_name(enum layout layout) { return layout == SAME ? "same" : "apart"; }

static inline u64 pages(u64 bytes) { return (bytes + PAGE - 1) & ~(PAGE - 1); }

static inline void fence(void) { __asm__ volatile("mfence" : : : "memory"); }

#endif
