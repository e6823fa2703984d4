// Computing and nothing else: how many points with whole coordinates are in a circle, from Jacobi's theorem on sums of two
// squares, which takes a great many divisions. Counted row by row, which takes next to nothing, they must be as many.
#include "guest.h"

enum { N };
struct param program_params[] = {
    NUMBER("n", 10000000, 1, 1ul << 40), // the square of the radius
    PARAMS_END,
};

static struct partial partials[MAX_VCPUS];

// Sum of n / (4i + 1) - n / (4i + 3), rounded down each, over this vCPU's share of i.
static u64 sum_divisors(const struct vcpu *cpu, u64 n) {
    struct range mine = share_of(cpu, n / 4 + 1);
    u64 sum = 0, step = (mine.to - mine.from) / 16 + 1;
    for (u64 i = mine.from; i < mine.to; i++) {
        sum += n / (4 * i + 1) - n / (4 * i + 3);
        if (cpu->index == 0 && (i + 1) % step == 0) device_write(MARK, i + 1);
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
