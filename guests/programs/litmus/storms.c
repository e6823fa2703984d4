// Every vCPU hammers the same words; the totals must be exact.
#include "litmus.h"

static struct partial partials[MAX_VCPUS];

// Two words in one page, or on two.
static u64 *word(enum layout layout, u64 which) { return variables + which * (layout == SAME ? 1 : PAGE / 8); }

static void expect(struct vcpu *cpu, const struct test *test, enum layout layout, u64 found, u64 expected) {
    u64 values[2] = {found, expected};
    if (found != expected) forbidden(cpu, test, layout, settings.iterations, values, 2);
}

static u64 sum_of_partials(struct vcpu *cpu) {
    u64 sum = 0;
    for (u64 i = 0; i < cpu->count; i++) sum += partials[i].value;
    return sum;
}

// What was taken out and what is left is what was put in.
static void run_xchg(struct vcpu *cpu, const struct test *test, enum layout layout) {
    u64 in = 0, out = 0;
    for (u64 i = 0; i < settings.iterations; i++) {
        u64 value = mix((cpu->index << 48) + i);
        in += value;
        out += exchange(word(layout, i % 2), value);
    }
    partials[cpu->index].value = in - out;
    barrier(cpu);
    if (cpu->index == 0) expect(cpu, test, layout, load(word(layout, 0)) + load(word(layout, 1)), sum_of_partials(cpu));
}

static void run_cas(struct vcpu *cpu, const struct test *test, enum layout layout) {
    for (u64 i = 0; i < settings.iterations; i++) {
        u64 *target = word(layout, i % 2), seen = load(target);
        while (!__atomic_compare_exchange_n(target, &seen, seen + 1, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
            __builtin_ia32_pause();
    }
    barrier(cpu);
    if (cpu->index != 0) return;
    u64 total = load(word(layout, 0)) + load(word(layout, 1));
    expect(cpu, test, layout, total, cpu->count * settings.iterations);
}

// Every number below the total has been returned once: their sum says so.
static void run_fetch_add(struct vcpu *cpu, const struct test *test, enum layout layout) {
    u64 returned = 0;
    for (u64 i = 0; i < settings.iterations; i++) returned += fetch_add(word(layout, i % 2), 1);
    partials[cpu->index].value = returned;
    barrier(cpu);
    if (cpu->index != 0) return;
    u64 even = cpu->count * ((settings.iterations + 1) / 2), odd = cpu->count * (settings.iterations / 2);
    expect(cpu, test, layout, load(word(layout, 0)), even);
    expect(cpu, test, layout, load(word(layout, 1)), odd);
    expect(cpu, test, layout, sum_of_partials(cpu), even * (even - 1) / 2 + (odd == 0 ? 0 : odd * (odd - 1) / 2));
}

// Plain additions, each vCPU to its own word: no word is shared, the page is.
static void run_false_sharing(struct vcpu *cpu, const struct test *test, enum layout layout) {
    volatile u64 *mine = word(layout, cpu->index);
    for (u64 i = 0; i < settings.iterations; i++) *mine = *mine + 1;
    barrier(cpu);
    if (cpu->index != 0) return;
    for (u64 i = 0; i < cpu->count; i++) expect(cpu, test, layout, *word(layout, i), settings.iterations);
}

#define HANDED_OVER 100 // iterations in a turn: a hand-over costs the recorder a chunk

// One page goes round: whoever's turn it is finds what all turns before left.
static void run_ping_pong(struct vcpu *cpu, const struct test *test, enum layout layout) {
    u64 *turn = word(layout, 0);
    volatile u64 *ball = word(layout, 1);
    u64 turns = (settings.iterations + HANDED_OVER - 1) / HANDED_OVER;
    for (u64 mine = cpu->index; mine < turns; mine += cpu->count) {
        WAIT_UNTIL(load(turn) == mine);
        expect(cpu, test, layout, *ball, mine * HANDED_OVER);
        for (u64 i = 0; i < HANDED_OVER; i++) *ball = *ball + 1;
        store(turn, mine + 1);
        publish();
    }
    barrier(cpu);
    if (cpu->index == 0) expect(cpu, test, layout, *ball, turns * HANDED_OVER);
}

const struct test storm_tests[] = {
    {"xchg", 1, run_xchg},
    {"cas", 1, run_cas},
    {"fetchadd", 1, run_fetch_add},
    {"falseshare", 1, run_false_sharing},
    {"pingpong", 2, run_ping_pong},
    {NULL, 0, NULL},
};
