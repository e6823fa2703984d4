// CLOCK never goes back, whichever vCPU reads it, and goes on; RANDOM does not repeat itself.
#include "guest.h"

enum { N };
struct param program_params[] = {
    NUMBER("n", 1000, 2, 1ul << 32),
    PARAMS_END,
};

static struct {
    struct spin_lock lock;
    u64 last;
    u64 first;
    u64 random;
    u64 repeats;
} OWN_PAGE shared;

static void sample(struct vcpu *cpu, bool random) {
    spin_lock(&shared.lock);
    u64 now = device_read(CLOCK), before = shared.last;
    if (now < before) fail(cpu, WRONG, "clock went back on vcpu %lu: %lu after %lu", cpu->index, now, before);
    if (before == 0) shared.first = now;
    shared.last = now;
    if (random) {
        u64 drawn = device_read(RANDOM);
        shared.repeats += drawn == shared.random;
        shared.random = drawn;
    }
    spin_unlock(&shared.lock);
    publish();
}

void program_run(struct vcpu *cpu) {
    struct range mine = share_of(cpu, param(N));
    for (u64 i = mine.from; i < mine.to; i++) {
        sample(cpu, i % 8 == 0);
        if (cpu->index == 0 && (i + 1) % 256 == 0) device_write(MARK, i + 1);
    }
    barrier(cpu);
    if (cpu->index != 0) return;
    if (shared.last == shared.first) fail(cpu, WRONG, "clock stands still at %lu", shared.last);
    if (shared.repeats > 0) fail(cpu, WRONG, "random repeats itself: %lx", shared.random);
    say(cpu, "clock and random ok %lu\n", param(N));
}
