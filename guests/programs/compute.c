// Computing and nothing else: how many points with whole coordinates are in a circle, from Jacobi's theorem on sums of two
// squares, which takes a great many divisions. Counted row by row, which takes next to nothing, they must be as many.
//
// With `pace` each vCPU ends its chunks itself, by loads of CLOCK, which also say how much goes into the next one. It then
// stores how far it is at every step, on two pages: what writes nothing looks like a wait loop, and gets short chunks.
#include "guest.h"

enum { N, PACE };
struct param program_params[] = {
    NUMBER("n", 10000000, 1, 1ul << 40), // the square of the radius
    NUMBER("pace", 0, 0, 1000000),       // microseconds from one such load to the next; 0 for none
    PARAMS_END,
};

static struct partial partials[MAX_VCPUS];

#define FIRST_STEPS 10000ul

static struct pace {
    u64 steps; // between two loads
    u64 left;  // until the next one
    u64 last;
} OWN_PAGE paces[MAX_VCPUS];

// Ends the chunk, and finds how many steps the next one has. One that was held up does not count for much.
static void end_chunk(struct pace *pace) {
    u64 now = device_read(CLOCK), took = now - pace->last, steps = pace->steps;
    u64 fitting = took == 0 ? 2 * steps : steps * param(PACE) * 1000 / took;
    if (fitting > 2 * steps) fitting = 2 * steps;
    if (fitting < steps / 2) fitting = steps / 2;
    pace->steps = pace->last == 0 ? FIRST_STEPS : (3 * steps + fitting) / 4 + 1;
    pace->left = pace->steps;
    pace->last = now;
}

static void keep_pace(struct pace *pace, struct partial *partial, u64 done) {
    store(&partial->other, done);
    store(&pace->left, pace->left - 1);
    if (pace->left == 0) end_chunk(pace);
}

// Sum of n / (4i + 1) - n / (4i + 3), rounded down each, over this vCPU's share of i.
static u64 sum_divisors(const struct vcpu *cpu, u64 n) {
    struct range mine = share_of(cpu, n / 4 + 1);
    u64 sum = 0, step = (mine.to - mine.from) / 16 + 1;
    bool keeps_pace = param(PACE) != 0;
    if (keeps_pace) end_chunk(&paces[cpu->index]);
    for (u64 i = mine.from; i < mine.to; i++) {
        sum += n / (4 * i + 1) - n / (4 * i + 3);
        if (cpu->index == 0 && (i + 1) % step == 0) device_write(MARK, i + 1);
        if (keeps_pace) keep_pace(&paces[cpu->index], &partials[cpu->index], i + 1);
    }
    return sum;
}

static u64 count_rows(u64 n) {
    u64 half = 0, count = 0;
    while ((half + 1) * (half + 1) <= n) half++;
    for (u64 row = 0; row * row <= n; row++) {
        while (row * row + half * half > n) half--;
        count += (2 * half + 1) * (row == 0 ? 1 : 2);
    }
    return count;
}

void program_run(struct vcpu *cpu) {
    u64 n = param(N), sum = 0;
    partials[cpu->index].value = sum_divisors(cpu, n);
    barrier(cpu);
    if (cpu->index != 0) return;
    for (u64 i = 0; i < cpu->count; i++) sum += partials[i].value;
    u64 points = 1 + 4 * sum, counted = count_rows(n);
    if (points != counted) fail(cpu, WRONG, "%lu points, but row by row %lu", points, counted);
    say(cpu, "compute %lu points %lu\n", n, points);
}
