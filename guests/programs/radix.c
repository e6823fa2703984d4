// Least-significant-digit radix sort of n 64-bit keys: eight passes of eight bits, two barriers each.
#include "guest.h"

enum { N, PASSES };
struct param program_params[] = {
    NUMBER("n", 1000000, 1, 1ul << 32),
    NUMBER("passes", 1, 1, 1ul << 20), // sorts; each must give the same
    PARAMS_END,
};

#define DIGITS 256

static u64 *keys, *spare;
static u64 histograms[MAX_VCPUS][DIGITS] OWN_PAGE;
static struct partial partials[MAX_VCPUS];
static struct {
    u64 sum;
    u64 order;
} OWN_PAGE first_sort;

void program_setup(struct vcpu *cpu) {
    keys = alloc(cpu, param(N) * 8);
    spare = alloc(cpu, param(N) * 8);
}

static void count_digits(u64 *histogram, const u64 *from, struct range mine, u64 shift) {
    u64 counts[DIGITS];
    memset(counts, 0, sizeof counts);
    for (u64 i = mine.from; i < mine.to; i++) counts[(from[i] >> shift) % DIGITS]++;
    memcpy(histogram, counts, sizeof counts);
}

// Where this vCPU's keys of every digit go: behind all smaller digits, and behind the same digit of earlier vCPUs.
static void find_places(const struct vcpu *cpu, u64 places[DIGITS]) {
    u64 place = 0;
    for (u64 digit = 0; digit < DIGITS; digit++) {
        for (u64 vcpu = 0; vcpu < cpu->count; vcpu++) {
            if (vcpu == cpu->index) places[digit] = place;
            place += histograms[vcpu][digit];
        }
    }
}

static void sort(struct vcpu *cpu, struct range mine) {
    u64 *from = keys, *to = spare;
    for (u64 shift = 0; shift < 64; shift += 8) {
        u64 places[DIGITS];
        count_digits(histograms[cpu->index], from, mine, shift);
        barrier(cpu);
        find_places(cpu, places);
        for (u64 i = mine.from; i < mine.to; i++) to[places[(from[i] >> shift) % DIGITS]++] = from[i];
        barrier(cpu);
        u64 *swap = from;
        from = to;
        to = swap;
    }
}

// Sum and place-dependent checksum of this vCPU's part, which must be in order and follow on the part before.
static void check(struct vcpu *cpu, struct range mine) {
    u64 sum = 0, order = 0;
    for (u64 i = mine.from; i < mine.to; i++) {
        if (i > 0 && keys[i - 1] > keys[i]) fail(cpu, WRONG, "keys %lu and %lu are not in order", i - 1, i);
        sum += keys[i];
        order += keys[i] * (2 * i + 1);
    }
    partials[cpu->index].value = sum;
    partials[cpu->index].other = order;
}

static void conclude(struct vcpu *cpu, u64 pass) {
    u64 sum = 0, order = 0, expected = 0;
    for (u64 i = 0; i < cpu->count; i++) {
        sum += partials[i].value;
        order += partials[i].other;
    }
    for (u64 i = 0; i < param(N); i++) expected += mix(i);
    if (sum != expected) fail(cpu, WRONG, "keys were lost: sum %lx, not %lx", sum, expected);
    if (pass > 0 && order != first_sort.order) fail(cpu, WRONG, "sort %lu gave another order", pass);
    first_sort.sum = sum;
    first_sort.order = order;
    device_write(MARK, pass + 1);
}

void program_run(struct vcpu *cpu) {
    struct range mine = share_of(cpu, param(N));
    for (u64 pass = 0; pass < param(PASSES); pass++) {
        for (u64 i = mine.from; i < mine.to; i++) keys[i] = mix(i);
        sort(cpu, mine);
        check(cpu, mine);
        barrier(cpu);
        if (cpu->index == 0) conclude(cpu, pass);
        barrier(cpu);
    }
    if (cpu->index == 0) say(cpu, "radix %lu sum %016lx order %016lx\n", param(N), first_sort.sum, first_sort.order);
}
