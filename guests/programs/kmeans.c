// Clusters of points in eight dimensions, by Lloyd's algorithm from several starts: every vCPU finds the nearest centres of
// its points, adds its sums to those of all under a lock, and one moves the centres between two barriers. Whole numbers:
// sums are exact in any order.
#include "guest.h"

enum { N, K, ROUNDS, TRIES };
struct param program_params[] = {
    NUMBER("n", 8192, 1, 1ul << 24),
    NUMBER("k", 16, 1, 64),
    NUMBER("rounds", 10, 1, 1ul << 20),
    NUMBER("tries", 2, 1, 1ul << 20), // starts from other points
    PARAMS_END,
};

#define DIMENSIONS 8ul
#define MOST_CENTRES 64

typedef u32 point[DIMENSIONS]; // coordinates below 2^16

struct tally {
    u64 sums[MOST_CENTRES][DIMENSIONS], counts[MOST_CENTRES];
    u64 cost; // squares of the distances to the nearest centres
};

static point *points;
static u32 *nearest;
static struct {
    point at[MOST_CENTRES];
} OWN_PAGE centres;
static struct {
    struct spin_lock lock;
    struct tally tally;
} OWN_PAGE all;
static u64 totals[DIMENSIONS];
static struct {
    u64 best, checksum, cost_before;
} OWN_PAGE result;

static u32 coordinate(u64 i, u64 d) {
    u64 middle = mix(mix(~i) % param(K) * DIMENSIONS + d) % 49152;
    return (u32)(middle + mix((i + 1000) * DIMENSIONS + d) % 16384);
}

void program_setup(struct vcpu *cpu) {
    points = alloc(cpu, param(N) * sizeof *points);
    nearest = alloc(cpu, param(N) * sizeof *nearest);
    for (u64 i = 0; i < param(N); i++)
        for (u64 d = 0; d < DIMENSIONS; d++) totals[d] += coordinate(i, d);
    result.best = ~0ul;
}

static u64 distance(const u32 *a, const u32 *b) {
    u64 sum = 0;
    for (u64 d = 0; d < DIMENSIONS; d++) {
        long apart = (long)a[d] - (long)b[d];
        sum += (u64)(apart * apart);
    }
    return sum;
}

// Notes the nearest centre of each of this vCPU's points, the first of those that are equally near.
static void assign(struct range mine, struct tally *tally) {
    memset(tally, 0, sizeof *tally);
    for (u64 i = mine.from; i < mine.to; i++) {
        u64 best = ~0ul;
        u32 centre = 0;
        for (u32 k = 0; k < param(K); k++) {
            u64 found = distance(points[i], centres.at[k]);
            if (found < best) best = found, centre = k;
        }
        nearest[i] = centre;
        tally->cost += best;
        tally->counts[centre]++;
        for (u64 d = 0; d < DIMENSIONS; d++) tally->sums[centre][d] += points[i][d];
    }
}

static void add_to_all(const struct tally *tally) {
    spin_lock(&all.lock);
    for (u64 k = 0; k < param(K); k++) {
        all.tally.counts[k] += tally->counts[k];
        for (u64 d = 0; d < DIMENSIONS; d++) all.tally.sums[k][d] += tally->sums[k][d];
    }
    all.tally.cost += tally->cost;
    spin_unlock(&all.lock);
}

// No point is missing from the sums, and it has not become worse: but for the rounding of centres, it cannot.
static void check_tally(struct vcpu *cpu, u64 round) {
    u64 count = 0;
    for (u64 k = 0; k < param(K); k++) count += all.tally.counts[k];
    if (count != param(N)) fail(cpu, WRONG, "round %lu: %lu points, not %lu", round, count, param(N));
    for (u64 d = 0; d < DIMENSIONS; d++) {
        u64 sum = 0;
        for (u64 k = 0; k < param(K); k++) sum += all.tally.sums[k][d];
        if (sum != totals[d]) fail(cpu, WRONG, "round %lu: coordinates add up to %lu, not %lu", round, sum, totals[d]);
    }
    if (round > 0 && all.tally.cost > result.cost_before + param(N) * DIMENSIONS)
        fail(cpu, WRONG, "round %lu made it worse", round);
    result.cost_before = all.tally.cost;
}

static void move_centres(void) {
    for (u64 k = 0; k < param(K); k++)
        for (u64 d = 0; d < DIMENSIONS && all.tally.counts[k] > 0; d++)
            centres.at[k][d] = (u32)(all.tally.sums[k][d] / all.tally.counts[k]);
    memset(&all.tally, 0, sizeof all.tally);
}

// Of each pair of centres, whether a point is nearer to the other one, by the plane between them.
static void check_nearest(struct vcpu *cpu, struct range mine) {
    for (u64 i = mine.from; i < mine.to; i++)
        for (u64 k = 0; k < param(K); k++) {
            const u32 *own = centres.at[nearest[i]], *other = centres.at[k];
            long side = 0;
            for (u64 d = 0; d < DIMENSIONS; d++)
                side += ((long)other[d] - (long)own[d]) * (2 * (long)points[i][d] - (long)other[d] - (long)own[d]);
            if (side > 0) fail(cpu, WRONG, "point %lu is nearer to centre %lu", i, k);
        }
}

static void begin_try(u64 try) {
    for (u64 k = 0; k < param(K); k++) memcpy(centres.at[k], points[mix(try * MOST_CENTRES + k) % param(N)], sizeof(point));
}

static void end_try(u64 try) {
    for (u64 k = 0; k < param(K); k++)
        for (u64 d = 0; d < DIMENSIONS; d++)
            result.checksum += checksum_part(centres.at[k][d], (try * MOST_CENTRES + k) * DIMENSIONS + d);
    if (result.cost_before < result.best) result.best = result.cost_before;
    device_write(MARK, try + 1);
}

static void lloyd(struct vcpu *cpu, struct range mine) {
    for (u64 round = 0; round < param(ROUNDS); round++) {
        struct tally tally;
        assign(mine, &tally);
        if (round + 1 == param(ROUNDS)) check_nearest(cpu, mine);
        add_to_all(&tally);
        barrier(cpu);
        if (cpu->index == 0) {
            check_tally(cpu, round);
            move_centres();
        }
        barrier(cpu);
    }
}

void program_run(struct vcpu *cpu) {
    struct range mine = share_of_groups(cpu, param(N), PAGE / sizeof *nearest);
    for (u64 i = mine.from; i < mine.to; i++)
        for (u64 d = 0; d < DIMENSIONS; d++) points[i][d] = coordinate(i, d);
    barrier(cpu);
    for (u64 try = 0; try < param(TRIES); try++) {
        if (cpu->index == 0) begin_try(try);
        barrier(cpu);
        lloyd(cpu, mine);
        if (cpu->index == 0) end_try(try);
    }
    if (cpu->index == 0) say(cpu, "kmeans %lu best %lu checksum %016lx\n", param(N), result.best, result.checksum);
}
