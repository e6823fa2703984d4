// Red-black relaxation of Laplace's equation on a square grid of doubles: two barriers a sweep, and what changed most is
// agreed on after each. The grid starts as x*y plus the slowest of the waves that die out; how fast that one dies is
// known, so every point is known after any number of sweeps. Red and black points only read each other: the grid is the
// same to the bit for any vCPU count.
#include "guest.h"
#include "numeric.h"

enum { N, SWEEPS };
struct param program_params[] = {
    NUMBER("n", 254, 3, 16384), // points inside, each way
    NUMBER("sweeps", 200, 1, 1ul << 20),
    PARAMS_END,
};

enum { RED, BLACK };

static u64 n, stride;
static double *grids[2]; // the colours apart, so that no page is read while it is written; rows start on pages
static struct partial partials[MAX_VCPUS];

void program_setup(struct vcpu *cpu) {
    n = param(N);
    stride = ((n + 3) / 2 * sizeof(double) + PAGE - 1) / PAGE * (PAGE / sizeof(double));
    for (u64 colour = RED; colour <= BLACK; colour++) grids[colour] = alloc(cpu, (n + 2) * stride * sizeof(double));
}

// The points of one colour in a row: point (row, column) is number column / 2.
static double *line(u64 colour, u64 row) { return grids[colour] + row * stride; }

static u64 colour_of(u64 row, u64 column) { return (row + column) % 2; }

// sin(pi i / (n + 1))
static double wave(u64 i) {
    u64 half_turn = n + 1;
    if (2 * i > half_turn) i = half_turn - i;
    double angle = (double)(4 * i) / (double)half_turn; // in quarters of pi
    return 4 * i <= half_turn ? sine(QUARTER_PI * angle) : cosine(QUARTER_PI * (2.0 - angle));
}

// Where (row, column) is when the wave has `height`.
static double expected(double height, u64 row, u64 column) {
    double side = (double)(n + 1), still = (double)row / side * ((double)column / side);
    return still + height * (wave(row) * wave(column));
}

static void fill(struct range rows) {
    for (u64 row = rows.from; row < rows.to; row++)
        for (u64 column = 0; column < n + 2; column++)
            line(colour_of(row, column), row)[column / 2] = expected(1.0, row, column);
}

// Every point becomes the mean of its four neighbours. The largest change.
static double relax_row(u64 colour, u64 row) {
    u64 first = colour_of(row, 1) == colour ? 1 : 2, last = first / 2 + (n - first) / 2;
    double *points = line(colour, row), most = 0;
    const double *above = line(!colour, row - 1), *below = line(!colour, row + 1);
    const double *left = line(!colour, row) - (first == 2), *right = left + 1;
    for (u64 i = first / 2; i <= last; i++) {
        double value = ((above[i] + below[i]) + (left[i] + right[i])) * 0.25;
        double change = absolute(value - points[i]);
        points[i] = value;
        most = change > most ? change : most;
    }
    return most;
}

static double relax(u64 colour, struct range rows) {
    double most = 0;
    for (u64 row = rows.from; row < rows.to; row++) {
        double change = relax_row(colour, row);
        most = change > most ? change : most;
    }
    return most;
}

static double most_of_all(const struct vcpu *cpu) {
    double most = 0;
    for (u64 i = 0; i < cpu->count; i++) most = partials[i].error > most ? partials[i].error : most;
    return most;
}

// All sweeps; the change that the last one made. One that makes more than the one before is wrong.
static double relax_all(struct vcpu *cpu, struct range rows) {
    double before = 2.0;
    for (u64 sweep = 0; sweep < param(SWEEPS); sweep++) {
        double red = relax(RED, rows);
        barrier(cpu);
        double black = relax(BLACK, rows);
        partials[cpu->index].error = red > black ? red : black;
        barrier(cpu);
        double change = most_of_all(cpu);
        if (!(change <= before + 4 * EPSILON)) fail(cpu, WRONG, "sweep %lu changes more than the one before", sweep);
        before = change;
        if (cpu->index == 0) device_write(MARK, sweep + 1);
    }
    return before;
}

// How high the wave still is: each half sweep makes it lower by the cosine of its angle. Red is half a sweep behind.
static double height(u64 colour) {
    double left = 1.0, factor = cosine(4.0 * QUARTER_PI / (double)(n + 1));
    for (u64 i = 0; i < 2 * param(SWEEPS) - (colour == RED); i++) left *= factor;
    return left;
}

static u64 check(struct vcpu *cpu, struct range rows) {
    u64 sum = 0;
    double heights[2] = {height(RED), height(BLACK)}, bound = EPSILON * 4 * (double)(param(SWEEPS) + 4);
    for (u64 row = rows.from; row < rows.to; row++)
        for (u64 column = 1; column <= n; column++) {
            u64 colour = colour_of(row, column);
            double value = line(colour, row)[column / 2];
            if (!(absolute(value - expected(heights[colour], row, column)) <= bound))
                fail(cpu, WRONG, "point %lu %lu is not where it should be", row, column);
            sum += checksum_part(bits_of(value), row * (n + 2) + column);
        }
    return sum;
}

void program_run(struct vcpu *cpu) {
    struct range rows = share_of(cpu, n), all = share_of(cpu, n + 2);
    rows.from++, rows.to++; // the edge stays as it is
    fill(all);
    barrier(cpu);
    double change = relax_all(cpu, rows);
    partials[cpu->index].value = check(cpu, rows);
    barrier(cpu);
    if (cpu->index != 0) return;
    u64 sum = 0;
    for (u64 i = 0; i < cpu->count; i++) sum += partials[i].value;
    say(cpu, "ocean %lu change %016lx checksum %016lx\n", n, bits_of(change), sum);
}
