// Streams through three arrays of words: copy, scale, add, triad, each vCPU on pages of its own. All memory is written over
// and over and nothing is shared. What every word must be in the end follows from what it was at first.
#include "guest.h"

enum { N, PASSES };
struct param program_params[] = {
    NUMBER("n", 1ul << 20, 1, 1ul << 32), // words in an array
    NUMBER("passes", 4, 1, 1ul << 20),
    PARAMS_END,
};

#define SCALAR 3ul
// A pass makes a word of the first array this many times as large, modulo 2^64.
#define GROWTH (SCALAR * (2 + SCALAR))

static u64 *first, *second, *third;
static struct partial partials[MAX_VCPUS];

void program_setup(struct vcpu *cpu) {
    first = alloc(cpu, param(N) * sizeof(u64));
    second = alloc(cpu, param(N) * sizeof(u64));
    third = alloc(cpu, param(N) * sizeof(u64));
}

static void stream(u64 *a, u64 *b, u64 *c, u64 count) {
    for (u64 i = 0; i < count; i++) c[i] = a[i];
    for (u64 i = 0; i < count; i++) b[i] = SCALAR * c[i];
    for (u64 i = 0; i < count; i++) c[i] = a[i] + b[i];
    for (u64 i = 0; i < count; i++) a[i] = b[i] + SCALAR * c[i];
}

static u64 check(struct vcpu *cpu, struct range mine) {
    u64 before = 1, sum = 0;
    for (u64 pass = 1; pass < param(PASSES); pass++) before *= GROWTH;
    for (u64 i = mine.from; i < mine.to; i++) {
        u64 was = before * mix(i);
        if (first[i] != GROWTH * was || second[i] != SCALAR * was || third[i] != (1 + SCALAR) * was)
            fail(cpu, WRONG, "words %lu are wrong", i);
        sum += checksum_part(first[i], 3 * i) + checksum_part(second[i], 3 * i + 1) + checksum_part(third[i], 3 * i + 2);
    }
    return sum;
}

void program_run(struct vcpu *cpu) {
    struct range mine = share_of_groups(cpu, param(N), PAGE / sizeof(u64));
    for (u64 i = mine.from; i < mine.to; i++) first[i] = mix(i);
    for (u64 pass = 0; pass < param(PASSES); pass++) {
        stream(first + mine.from, second + mine.from, third + mine.from, mine.to - mine.from);
        if (cpu->index == 0) device_write(MARK, pass + 1);
    }
    partials[cpu->index].value = check(cpu, mine);
    barrier(cpu);
    if (cpu->index != 0) return;
    u64 sum = 0;
    for (u64 i = 0; i < cpu->count; i++) sum += partials[i].value;
    say(cpu, "stream %lu checksum %016lx\n", param(N), sum);
}
