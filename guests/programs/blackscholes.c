// Prices of European options by the formula of Black and Scholes: every vCPU prices options of its own, over and over, and
// shares nothing. Prices are the same to the bit for any vCPU count.
#include "guest.h"
#include "numeric.h"

enum { N, PASSES };
struct param program_params[] = {
    NUMBER("n", 8192, 1, 1ul << 28),
    NUMBER("passes", 10, 1, 1ul << 20), // each must give the same
    PARAMS_END,
};

#define SAMPLES 16 // options of every vCPU that are priced by integration as well
#define INTERVALS 1024
#define NORMAL_HEIGHT 0x1.9884533d43651p-2 // 1 / sqrt(2 pi)

struct option {
    double spot, strike, rate, volatility, years;
    u64 is_put;
};

static struct option *options;
static double *prices;
static struct partial partials[MAX_VCPUS];

void program_setup(struct vcpu *cpu) {
    options = alloc(cpu, param(N) * sizeof *options);
    prices = alloc(cpu, param(N) * sizeof *prices);
}

static double between(double low, double high, u64 seed) { return low + (high - low) * (0.5 + 0.5 * unit(seed)); }

static struct option option_of(u64 i) {
    return (struct option){
        .spot = between(50, 150, 8 * i),
        .strike = between(50, 150, 8 * i + 1),
        .rate = between(0.01, 0.1, 8 * i + 2),
        .volatility = between(0.1, 0.6, 8 * i + 3),
        .years = between(0.1, 2, 8 * i + 4),
        .is_put = mix(8 * i + 5) % 2,
    };
}

static double density(double x) { return NORMAL_HEIGHT * exponential(-0.5 * x * x); }

// The normal distribution, wrong by less than 7.5e-8 (Abramowitz and Stegun 26.2.17).
static double normal(double x) {
    double k = 1.0 / (1.0 + 0.2316419 * absolute(x));
    double sum = 1.781477937 + k * (-1.821255978 + k * 1.330274429);
    double tail = density(x) * (k * (0.319381530 + k * (-0.356563782 + k * sum)));
    return x < 0 ? tail : 1.0 - tail;
}

static double discounted(const struct option *o) { return o->strike * exponential(-(o->rate * o->years)); }

static double price(const struct option *o) {
    double spread = o->volatility * square_root(o->years);
    double drift = (o->rate + 0.5 * o->volatility * o->volatility) * o->years;
    double d1 = (logarithm(o->spot / o->strike) + drift) / spread, d2 = d1 - spread;
    if (o->is_put) return discounted(o) * normal(-d2) - o->spot * normal(-d1);
    return o->spot * normal(d1) - discounted(o) * normal(d2);
}

// The same as the mean of what the option may pay in the end, by Simpson's rule from where a call pays anything; what a
// put is worth follows from that.
static double integrated(const struct option *o) {
    double spread = o->volatility * square_root(o->years), sum = 0;
    double drift = (o->rate - 0.5 * o->volatility * o->volatility) * o->years;
    double from = (logarithm(o->strike / o->spot) - drift) / spread;
    if (from < -10) from = -10;
    double step = (spread + 10 - from) / INTERVALS;
    for (u64 i = 0; i <= INTERVALS && step > 0; i++) {
        double x = from + step * (double)i, paid = o->spot * exponential(drift + spread * x) - o->strike;
        sum += paid * density(x) * (i == 0 || i == INTERVALS ? 1 : 2 + 2 * (double)(i % 2));
    }
    double call = exponential(-(o->rate * o->years)) * sum * step / 3;
    return o->is_put ? call - o->spot + discounted(o) : call;
}

static void check_samples(struct vcpu *cpu, struct range mine) {
    for (u64 sample = 0; sample < SAMPLES && mine.from < mine.to; sample++) {
        u64 i = mine.from + mix(sample) % (mine.to - mine.from);
        const struct option *o = &options[i];
        double bound = 2e-7 * (o->spot + o->strike);
        if (!(absolute(prices[i] - integrated(o)) <= bound)) fail(cpu, WRONG, "the price of option %lu is wrong", i);
    }
}

// Prices all of this vCPU's options, and checks that each is worth no less than if it were certain what it pays.
static u64 price_all(struct vcpu *cpu, struct range mine) {
    u64 sum = 0;
    for (u64 i = mine.from; i < mine.to; i++) {
        const struct option *o = &options[i];
        double paid = o->is_put ? discounted(o) - o->spot : o->spot - discounted(o), slack = 2e-7 * (o->spot + o->strike);
        prices[i] = price(o);
        if (!(prices[i] >= paid - slack && prices[i] >= -slack)) fail(cpu, WRONG, "option %lu is too cheap", i);
        sum += checksum_part(bits_of(prices[i]), i);
    }
    return sum;
}

void program_run(struct vcpu *cpu) {
    struct range mine = share_of_groups(cpu, param(N), PAGE / sizeof *prices);
    struct partial *result = &partials[cpu->index];
    for (u64 i = mine.from; i < mine.to; i++) options[i] = option_of(i);
    for (u64 pass = 0; pass < param(PASSES); pass++) {
        u64 sum = price_all(cpu, mine);
        if (pass > 0 && sum != result->value) fail(cpu, WRONG, "pass %lu gave other prices", pass);
        result->value = sum;
        if (cpu->index == 0) device_write(MARK, pass + 1);
    }
    check_samples(cpu, mine);
    barrier(cpu);
    if (cpu->index != 0) return;
    u64 sum = 0;
    for (u64 i = 0; i < cpu->count; i++) sum += partials[i].value;
    say(cpu, "blackscholes %lu checksum %016lx\n", param(N), sum);
}
