// Blocked LU factorisation without pivoting of a dense, diagonally dominant matrix of doubles. Every element is updated
// in the order of an unblocked factorisation, whoever does it: the result is the same to the bit for any vCPU count.
#include "guest.h"
#include "numeric.h"

enum { N };
struct param program_params[] = {
    NUMBER("n", 512, 32, 16384), // rounded up to a multiple of 32
    PARAMS_END,
};

#define BLOCK 32ul

typedef double block[BLOCK][BLOCK]; // two pages: vCPUs never share one

static block *blocks;
static u64 across; // blocks in a row
static double *image; // U x
static struct partial partials[MAX_VCPUS];

void program_setup(struct vcpu *cpu) {
    across = (param(N) + BLOCK - 1) / BLOCK;
    blocks = alloc(cpu, across * across * sizeof(block));
    image = alloc(cpu, across * BLOCK * sizeof(double));
}

static block *at(u64 row, u64 column) { return &blocks[row * across + column]; }

static double element(u64 row, u64 column) {
    double value = unit(row * 0x10000 + column);
    return row == column ? value + (double)(across * BLOCK) : value;
}

// Block (row, column) belongs to one vCPU: two-dimensional in turn, so that work stays even as the matrix shrinks.
static bool is_mine(const struct vcpu *cpu, u64 row, u64 column) {
    return (row * 3 + column) % cpu->count == cpu->index;
}

static void fill(struct vcpu *cpu) {
    for (u64 r = 0; r < across; r++)
        for (u64 c = 0; c < across; c++) {
            if (!is_mine(cpu, r, c)) continue;
            for (u64 i = 0; i < BLOCK; i++)
                for (u64 j = 0; j < BLOCK; j++) (*at(r, c))[i][j] = element(r * BLOCK + i, c * BLOCK + j);
        }
}

static void factor(block *diagonal) {
    double(*a)[BLOCK] = *diagonal;
    for (u64 k = 0; k < BLOCK; k++)
        for (u64 i = k + 1; i < BLOCK; i++) {
            a[i][k] /= a[k][k];
            for (u64 j = k + 1; j < BLOCK; j++) a[i][j] -= a[i][k] * a[k][j];
        }
}

// A block below the diagonal: solves for L.
static void solve_below(block *target, block *diagonal) {
    double(*a)[BLOCK] = *target, (*u)[BLOCK] = *diagonal;
    for (u64 i = 0; i < BLOCK; i++)
        for (u64 k = 0; k < BLOCK; k++) {
            a[i][k] /= u[k][k];
            for (u64 j = k + 1; j < BLOCK; j++) a[i][j] -= a[i][k] * u[k][j];
        }
}

// A block right of the diagonal: solves for U.
static void solve_right(block *target, block *diagonal) {
    double(*a)[BLOCK] = *target, (*l)[BLOCK] = *diagonal;
    for (u64 k = 0; k < BLOCK; k++)
        for (u64 i = k + 1; i < BLOCK; i++)
            for (u64 j = 0; j < BLOCK; j++) a[i][j] -= l[i][k] * a[k][j];
}

static void update(block *target, block *left, block *above) {
    double(*a)[BLOCK] = *target, (*l)[BLOCK] = *left, (*u)[BLOCK] = *above;
    for (u64 i = 0; i < BLOCK; i++)
        for (u64 k = 0; k < BLOCK; k++)
            for (u64 j = 0; j < BLOCK; j++) a[i][j] -= l[i][k] * u[k][j];
}

static void factor_all(struct vcpu *cpu) {
    for (u64 k = 0; k < across; k++) {
        if (is_mine(cpu, k, k)) factor(at(k, k));
        barrier(cpu);
        for (u64 i = k + 1; i < across; i++) {
            if (is_mine(cpu, i, k)) solve_below(at(i, k), at(k, k));
            if (is_mine(cpu, k, i)) solve_right(at(k, i), at(k, k));
        }
        barrier(cpu);
        for (u64 i = k + 1; i < across; i++)
            for (u64 j = k + 1; j < across; j++)
                if (is_mine(cpu, i, j)) update(at(i, j), at(i, k), at(k, j));
        barrier(cpu);
        if (cpu->index == 0) device_write(MARK, k + 1);
    }
}

static u64 checksum(struct vcpu *cpu) {
    u64 sum = 0, n = across * BLOCK;
    for (u64 r = 0; r < across; r++)
        for (u64 c = 0; c < across; c++) {
            if (!is_mine(cpu, r, c)) continue;
            for (u64 i = 0; i < BLOCK; i++)
                for (u64 j = 0; j < BLOCK; j++)
                    sum += checksum_part(bits_of((*at(r, c))[i][j]), (r * BLOCK + i) * n + c * BLOCK + j);
        }
    return sum;
}

static double factor_element(u64 i, u64 j) { return (*at(i / BLOCK, j / BLOCK))[i % BLOCK][j % BLOCK]; }

// The largest |A x - L (U x)| of this vCPU's rows, for a vector x of numbers in [-1, 1).
static double residual(struct vcpu *cpu) {
    u64 n = across * BLOCK;
    struct range mine = share_of(cpu, n);
    for (u64 i = mine.from; i < mine.to; i++) {
        double sum = 0;
        for (u64 j = i; j < n; j++) sum += factor_element(i, j) * unit(~j);
        image[i] = sum;
    }
    barrier(cpu);
    double worst = 0;
    for (u64 i = mine.from; i < mine.to; i++) {
        double sum = image[i], expected = 0;
        for (u64 j = 0; j < i; j++) sum += factor_element(i, j) * image[j];
        for (u64 j = 0; j < n; j++) expected += element(i, j) * unit(~j);
        double error = absolute(sum - expected);
        if (!(error <= worst)) worst = error; // a NaN is the worst of all
    }
    return worst;
}

void program_run(struct vcpu *cpu) {
    fill(cpu);
    barrier(cpu);
    factor_all(cpu);
    partials[cpu->index].value = checksum(cpu);
    partials[cpu->index].error = residual(cpu);
    barrier(cpu);
    if (cpu->index != 0) return;
    u64 n = across * BLOCK, sum = 0;
    // Rounding of n terms of size n, with room; a wrong element is wrong by far more.
    double bound = EPSILON * 4 * (double)n * (double)n;
    for (u64 i = 0; i < cpu->count; i++) {
        sum += partials[i].value;
        if (!(partials[i].error <= bound)) fail(cpu, WRONG, "residual of vcpu %lu is too large", i);
    }
    say(cpu, "lu %lu checksum %016lx\n", n, sum);
}
