// Bodies that attract each other, all pairs. Every vCPU sums up what its pairs pull on pages of its own, then adds that to
// the sums of all under a lock for each group of bodies. Places, speeds and pulls are whole numbers: sums are exact in any
// order, momentum is kept to the last bit, and the bodies go back the way they came when time is turned round.
#include "guest.h"
#include "numeric.h"

enum { N, STEPS };
struct param program_params[] = {
    NUMBER("n", 512, 1, 65536), // rounded up to a multiple of 64
    NUMBER("steps", 10, 1, 1ul << 20), // there, and as many back
    PARAMS_END,
};

#define GROUP 64ul
#define SMALLEST 0x1p-48 // one unit of place
#define SOFTENING 0x1p-8

typedef long whole[3];

struct bodies {
    whole places[GROUP], speeds[GROUP];
} OWN_PAGE;

struct pulls {
    struct spin_lock lock;
    whole sums[GROUP];
} OWN_PAGE;

static u64 n, groups;
static struct bodies *bodies;
static struct pulls *pulls;
static whole *own_sums[MAX_VCPUS];
static double mass;
static struct partial partials[MAX_VCPUS];
static struct {
    u64 checksum;
} OWN_PAGE result;

void program_setup(struct vcpu *cpu) {
    groups = (param(N) + GROUP - 1) / GROUP;
    n = groups * GROUP;
    mass = 0x1p32 / (double)n;
    bodies = alloc(cpu, groups * sizeof *bodies);
    pulls = alloc(cpu, groups * sizeof *pulls);
    for (u64 i = 0; i < cpu->count; i++) own_sums[i] = alloc(cpu, n * sizeof(whole));
}

static long *place(u64 body) { return bodies[body / GROUP].places[body % GROUP]; }
static long *speed(u64 body) { return bodies[body / GROUP].speeds[body % GROUP]; }
static long first_place(u64 body, u64 axis) { return (long)(unit(body * 6 + axis) / SMALLEST); }
static long first_speed(u64 body, u64 axis) { return (long)(unit(body * 6 + 3 + axis) / SMALLEST / 1024); }

// What `one` is pulled by `other`. Rounded to zero, so the other way round it is the same with the other sign.
static void pull_of(const long *one, const long *other, long *pull) {
    double away[3], square = SOFTENING;
    for (u64 axis = 0; axis < 3; axis++) {
        away[axis] = (double)(other[axis] - one[axis]) * SMALLEST;
        square += away[axis] * away[axis];
    }
    double strength = mass / (square * square_root(square));
    for (u64 axis = 0; axis < 3; axis++) pull[axis] = (long)(away[axis] * strength);
}

// Every pair belongs to one of its bodies: to each body the half of the others that come after it.
static void sum_pairs(whole *sums, struct range mine) {
    for (u64 i = mine.from; i < mine.to; i++) {
        u64 pairs = n / 2 - (i >= n / 2);
        for (u64 next = 1; next <= pairs; next++) {
            u64 j = i + next < n ? i + next : i + next - n;
            whole pull;
            pull_of(place(i), place(j), pull);
            for (u64 axis = 0; axis < 3; axis++) {
                sums[i][axis] += pull[axis];
                sums[j][axis] -= pull[axis];
            }
        }
    }
}

// Starts at the vCPU's own bodies, so that not all want the same lock.
static void add_to_all(struct vcpu *cpu, const whole *sums) {
    u64 first = share_of(cpu, groups).from;
    for (u64 i = 0; i < groups; i++) {
        u64 group = (first + i) % groups;
        struct pulls *all = &pulls[group];
        spin_lock(&all->lock);
        for (u64 k = 0; k < GROUP; k++)
            for (u64 axis = 0; axis < 3; axis++) all->sums[k][axis] += sums[group * GROUP + k][axis];
        spin_unlock(&all->lock);
    }
}

// What all others pull on `body`, with no use of pairs or locks.
static void sum_directly(u64 body, long *sum) {
    memset(sum, 0, sizeof(whole));
    for (u64 other = 0; other < n; other++) {
        whole pull;
        pull_of(place(body), place(other), pull);
        for (u64 axis = 0; axis < 3; axis++) sum[axis] += pull[axis];
    }
}

// Sums the pulls on all bodies, then changes the speeds of this vCPU's. `sign` is the direction of time.
static void pull_all(struct vcpu *cpu, struct range mine, u64 step, long sign) {
    whole *sums = own_sums[cpu->index], direct;
    u64 checked = mine.from < mine.to ? mine.from + mix(step) % (mine.to - mine.from) : 0;
    memset(sums, 0, n * sizeof *sums);
    sum_pairs(sums, mine);
    sum_directly(checked, direct);
    add_to_all(cpu, sums);
    barrier(cpu);
    for (u64 i = mine.from; i < mine.to; i++) {
        long *sum = pulls[i / GROUP].sums[i % GROUP];
        if (i == checked && memcmp(sum, direct, sizeof direct) != 0)
            fail(cpu, WRONG, "step %lu: the pull on body %lu is wrong", step, i);
        for (u64 axis = 0; axis < 3; axis++) speed(i)[axis] += sign * sum[axis];
        memset(sum, 0, sizeof(whole));
    }
}

static void move(struct range mine, long sign) {
    for (u64 i = mine.from; i < mine.to; i++)
        for (u64 axis = 0; axis < 3; axis++) place(i)[axis] += sign * speed(i)[axis];
}

static void begin(struct range mine) {
    for (u64 i = mine.from; i < mine.to; i++) {
        memset(pulls[i / GROUP].sums[i % GROUP], 0, sizeof(whole));
        if (i % GROUP == 0) pulls[i / GROUP].lock.held = 0;
        for (u64 axis = 0; axis < 3; axis++) {
            place(i)[axis] = first_place(i, axis);
            speed(i)[axis] = first_speed(i, axis);
        }
    }
}

// Checksum and momentum (of the three axes in one number) when time is turned round.
static void note(struct vcpu *cpu, struct range mine) {
    u64 sum = 0, momentum = 0;
    for (u64 i = mine.from; i < mine.to; i++)
        for (u64 axis = 0; axis < 3; axis++) {
            sum += checksum_part((u64)place(i)[axis], i * 6 + axis) + checksum_part((u64)speed(i)[axis], i * 6 + 3 + axis);
            momentum += (u64)(speed(i)[axis] - first_speed(i, axis)) << 8 * axis;
        }
    partials[cpu->index].value = sum;
    partials[cpu->index].other = momentum;
}

static void conclude(struct vcpu *cpu) {
    u64 sum = 0, momentum = 0;
    for (u64 i = 0; i < cpu->count; i++) {
        sum += partials[i].value;
        momentum += partials[i].other;
    }
    if (momentum != 0) fail(cpu, WRONG, "momentum is not kept: %lx more", momentum);
    result.checksum = sum;
}

static void check_return(struct vcpu *cpu, struct range mine) {
    for (u64 i = mine.from; i < mine.to; i++)
        for (u64 axis = 0; axis < 3; axis++)
            if (place(i)[axis] != first_place(i, axis) || speed(i)[axis] != first_speed(i, axis))
                fail(cpu, WRONG, "body %lu did not come back", i);
}

void program_run(struct vcpu *cpu) {
    struct range mine = share_of_groups(cpu, n, GROUP);
    begin(mine);
    barrier(cpu);
    for (u64 step = 0; step < param(STEPS); step++) {
        pull_all(cpu, mine, step, 1);
        move(mine, 1);
        barrier(cpu);
        if (cpu->index == 0) device_write(MARK, step + 1);
    }
    note(cpu, mine);
    barrier(cpu);
    if (cpu->index == 0) conclude(cpu);
    for (u64 step = param(STEPS); step-- > 0;) {
        move(mine, -1);
        barrier(cpu);
        pull_all(cpu, mine, step, -1);
        if (cpu->index == 0) device_write(MARK, 2 * param(STEPS) - step);
    }
    check_return(cpu, mine);
    barrier(cpu);
    if (cpu->index == 0) say(cpu, "nbody %lu checksum %016lx\n", n, result.checksum);
}
