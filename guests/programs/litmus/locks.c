// Peterson's and Dekker's locks: plain accesses and MFENCE keep two vCPUs apart, round a counter that is not atomic.
// They fail at once on a machine that lets a load pass an earlier store, or loses or delays a write.
#include "litmus.h"

struct pair_lock {
    volatile u64 *wants[2];
    volatile u64 *turn;
    volatile u64 *counter, *owner;
};

// Group `group`'s lock: all its words in one page, or on four.
static struct pair_lock lock_at(u64 group, enum layout layout) {
    u64 *base = variables + group * 4 * PAGE / 8;
    u64 stride = layout == SAME ? 1 : PAGE / 8;
    return (struct pair_lock){{base, base + stride}, base + 2 * stride, base + 3 * stride, base + 3 * stride + 8};
}

static bool peterson(struct pair_lock *lock, u64 me) {
    *lock->wants[me] = 1;
    *lock->turn = !me;
    fence();
    if (!*lock->wants[!me] || *lock->turn != !me) return false;
    WAIT_UNTIL(!*lock->wants[!me] || *lock->turn != !me);
    return true;
}

static bool dekker(struct pair_lock *lock, u64 me) {
    struct wait wait = wait_begin();
    *lock->wants[me] = 1;
    fence();
    if (!*lock->wants[!me]) return false;
    while (*lock->wants[!me]) {
        wait_step(&wait);
        if (*lock->turn == me) continue;
        *lock->wants[me] = 0;
        WAIT_UNTIL(*lock->turn == me);
        *lock->wants[me] = 1;
        fence();
    }
    return true;
}

static void leave_peterson(struct pair_lock *lock, u64 me) { *lock->wants[me] = 0; }

static void leave_dekker(struct pair_lock *lock, u64 me) {
    *lock->turn = !me;
    *lock->wants[me] = 0;
}

struct algorithm {
    bool (*enter)(struct pair_lock *lock, u64 me); // returns whether it had to wait
    void (*leave)(struct pair_lock *lock, u64 me);
};

static const struct algorithm algorithms[] = {{peterson, leave_peterson}, {dekker, leave_dekker}}; // as lock_tests

// Two vCPUs that both always want the lock take turns for ever, and under recording every turn costs a chunk.
// Staying away for longer after every wait lets the other take the lock many times at the cost of one.
static void stay_away(u64 streak) {
    for (u64 i = 0; i < 64ul << (streak < 8 ? streak : 8); i++) __builtin_ia32_pause();
}

// Now and then ends the chunk at one of three places of an iteration: while holding the lock, between the load and the
// store of the counter, after leaving.
enum place { HOLDING, ADDING, LEFT };
static void cut(u64 iteration, enum place place) {
    if (settings.cut != 0 && iteration % settings.cut == 0 && mix(iteration) % 3 == place) device_write(YIELD, 0);
}

static void contend(struct vcpu *cpu, const struct test *test, enum layout layout) {
    const struct algorithm *algorithm = &algorithms[test - lock_tests];
    struct pair_lock lock = lock_at(cpu->index / 2, layout);
    u64 me = cpu->index % 2, streak = 0;
    for (u64 i = 0; i < settings.iterations; i++) {
        bool waited = algorithm->enter(&lock, me);
        *lock.owner = me;
        cut(i, HOLDING);
        u64 count = *lock.counter;
        cut(i, ADDING);
        *lock.counter = count + 1;
        if (*lock.owner != me) forbidden(cpu, test, layout, i, &count, 1);
        algorithm->leave(&lock, me);
        cut(i, LEFT);
        streak = waited ? streak + 1 : 0;
        if (waited) stay_away(streak);
    }
}

static void run(struct vcpu *cpu, const struct test *test, enum layout layout) {
    u64 me = cpu->index % 2;
    bool idle = cpu->index - me + 2 > cpu->count;
    if (!idle) contend(cpu, test, layout);
    barrier(cpu);
    if (idle || me != 0) return;
    u64 count = *lock_at(cpu->index / 2, layout).counter;
    if (count != 2 * settings.iterations) forbidden(cpu, test, layout, settings.iterations, &count, 1);
}

const struct test lock_tests[] = {
    {"peterson", 2, run},
    {"dekker", 2, run},
    {NULL, 0, NULL},
};
