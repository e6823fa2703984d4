// Radix-2 FFT of complex doubles, forward and back. Every butterfly is computed the same way whoever does it, and sines
// come from a polynomial of our own: the spectrum is the same to the bit on every processor and for any vCPU count.
#include "guest.h"
#include "numeric.h"

enum { LOG2, PASSES };
struct param program_params[] = {
    NUMBER("log2", 16, 5, 28),
    NUMBER("passes", 4, 1, 1ul << 20),
    PARAMS_END,
};

#define BINS 8 // bins of the spectrum that are also computed directly

struct complex {
    double re, im;
};

static u64 n;
static struct complex *data, *twiddles; // twiddles[k] = e^(-2 pi i k / n), k < n/2
static struct partial partials[MAX_VCPUS];
static struct {
    u64 checksum;
} OWN_PAGE result;

void program_setup(struct vcpu *cpu) {
    n = 1ul << param(LOG2);
    data = alloc(cpu, n * sizeof *data);
    twiddles = alloc(cpu, n / 2 * sizeof *twiddles);
}

// e^(-2 pi i k / n) for k < n/2, from the octant that k is in.
static struct complex twiddle(u64 k) {
    u64 eighth = n / 8, octant = k / eighth, rest = k % eighth;
    if (octant % 2) rest = eighth - rest;
    double angle = QUARTER_PI * ((double)rest / (double)eighth);
    double s = sine(angle), c = cosine(angle);
    switch (octant) {
    case 0: return (struct complex){c, -s};
    case 1: return (struct complex){s, -c};
    case 2: return (struct complex){-s, -c};
    default: return (struct complex){-c, -s};
    }
}

static struct complex input(u64 i) { return (struct complex){unit(2 * i), unit(2 * i + 1)}; }

static struct complex times(struct complex a, struct complex b) {
    return (struct complex){a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re};
}

// The butterflies [from, to) of the stage in which partners are `half` apart. Decimation in frequency.
static void forward_stage(u64 half, u64 from, u64 to) {
    for (u64 b = from; b < to; b++) {
        u64 place = b % half, i = b / half * 2 * half + place, j = i + half;
        struct complex u = data[i], v = data[j], difference = {u.re - v.re, u.im - v.im};
        data[i] = (struct complex){u.re + v.re, u.im + v.im};
        data[j] = times(difference, twiddles[place * (n / 2 / half)]);
    }
}

// The same for the way back. Decimation in time.
static void backward_stage(u64 half, u64 from, u64 to) {
    for (u64 b = from; b < to; b++) {
        u64 place = b % half, i = b / half * 2 * half + place, j = i + half;
        struct complex w = twiddles[place * (n / 2 / half)];
        struct complex u = data[i], v = times(data[j], (struct complex){w.re, -w.im});
        data[i] = (struct complex){u.re + v.re, u.im + v.im};
        data[j] = (struct complex){u.re - v.re, u.im - v.im};
    }
}

// Stages with partners less than this apart stay within one of MAX_VCPUS blocks, and need no barriers.
static u64 block(void) { return n / MAX_VCPUS; }

// Natural order in, bit-reversed order out.
static void forward(struct vcpu *cpu) {
    struct range wide = share_of(cpu, n / 2), blocks = share_of(cpu, MAX_VCPUS);
    for (u64 half = n / 2; half >= block(); half /= 2) {
        forward_stage(half, wide.from, wide.to);
        barrier(cpu);
    }
    for (u64 b = blocks.from; b < blocks.to; b++)
        for (u64 half = block() / 2; half > 0; half /= 2) forward_stage(half, b * block() / 2, (b + 1) * block() / 2);
    barrier(cpu);
}

// Bit-reversed order in, natural order out, n times as large.
static void backward(struct vcpu *cpu) {
    struct range wide = share_of(cpu, n / 2), blocks = share_of(cpu, MAX_VCPUS);
    for (u64 b = blocks.from; b < blocks.to; b++)
        for (u64 half = 1; half < block(); half *= 2) backward_stage(half, b * block() / 2, (b + 1) * block() / 2);
    barrier(cpu);
    for (u64 half = block(); half < n; half *= 2) {
        backward_stage(half, wide.from, wide.to);
        barrier(cpu);
    }
}

static u64 reverse_bits(u64 index) {
    u64 reversed = 0;
    for (u64 i = 0; i < param(LOG2); i++) reversed |= ((index >> i) & 1) << (param(LOG2) - 1 - i);
    return reversed;
}

// NaN counts as too large.
static bool is_near(struct complex a, struct complex b, double bound) {
    return absolute(a.re - b.re) <= bound && absolute(a.im - b.im) <= bound;
}

// Compares this vCPU's share of a few bins with the sum that defines them.
static void check_bins(struct vcpu *cpu) {
    for (u64 bin = cpu->index; bin < BINS; bin += cpu->count) {
        u64 k = mix(bin) % n;
        struct complex sum = {0, 0};
        for (u64 i = 0; i < n; i++) {
            u64 turn = k * i % n;
            struct complex w = twiddles[turn % (n / 2)];
            if (turn >= n / 2) w = (struct complex){-w.re, -w.im};
            struct complex term = times(input(i), w);
            sum = (struct complex){sum.re + term.re, sum.im + term.im};
        }
        double bound = EPSILON * 4 * (double)n;
        if (!is_near(sum, data[reverse_bits(k)], bound)) fail(cpu, WRONG, "bin %lu of the spectrum is wrong", k);
    }
}

static u64 checksum(struct range part) {
    u64 sum = 0;
    for (u64 i = part.from; i < part.to; i++)
        sum += checksum_part(bits_of(data[i].re), 2 * i) + checksum_part(bits_of(data[i].im), 2 * i + 1);
    return sum;
}

static void check_input(struct vcpu *cpu, struct range part) {
    double scale = 1.0 / (double)n, bound = EPSILON * 16 * (double)param(LOG2);
    for (u64 i = part.from; i < part.to; i++) {
        struct complex back = {data[i].re * scale, data[i].im * scale};
        if (!is_near(back, input(i), bound)) fail(cpu, WRONG, "number %lu did not come back", i);
    }
}

static void conclude(struct vcpu *cpu, u64 pass) {
    u64 sum = 0;
    for (u64 i = 0; i < cpu->count; i++) sum += partials[i].value + partials[i].other;
    if (pass > 0 && sum != result.checksum) fail(cpu, WRONG, "pass %lu gave another result", pass);
    result.checksum = sum;
    device_write(MARK, pass + 1);
}

void program_run(struct vcpu *cpu) {
    struct range butterflies = share_of(cpu, n / 2), numbers = share_of(cpu, n);
    struct partial *mine = &partials[cpu->index];
    for (u64 k = butterflies.from; k < butterflies.to; k++) twiddles[k] = twiddle(k);
    for (u64 pass = 0; pass < param(PASSES); pass++) {
        for (u64 i = numbers.from; i < numbers.to; i++) data[i] = input(i);
        barrier(cpu);
        forward(cpu);
        mine->value = checksum(numbers);
        if (pass == 0) check_bins(cpu);
        barrier(cpu);
        backward(cpu);
        mine->other = checksum(numbers);
        check_input(cpu, numbers);
        barrier(cpu);
        if (cpu->index == 0) conclude(cpu, pass);
        barrier(cpu);
    }
    if (cpu->index == 0) say(cpu, "fft %lu checksum %016lx\n", n, result.checksum);
}
