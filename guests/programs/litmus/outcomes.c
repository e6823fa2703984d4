// Tests of which values loads may see. As litmus7 does it: every role sweeps an array of independent instances, then
// all meet and the outcomes are looked at. A meeting costs the recorder far more than an instance.
//
// Variables are never reset: instance i of batch b writes values of that batch, and anything smaller is "old".
#include "litmus.h"

#define LOCATIONS 3
#define CELL 32ul // bytes of an instance when its variables are together

struct sweep {
    u8 *base;
    u64 between_locations, between_instances;
    u64 count;
    u64 first, second; // the batch's values; anything below `first` is old
    u64 *r0, *r1;
    u64 random;
    u64 until_cut;
};

static struct {
    struct sweep sweep;
} OWN_PAGE sweeps[MAX_VCPUS];

// Ends the chunk in the middle of a sweep now and then, so that chunk boundaries fall at any instance.
static inline void cut(struct sweep *s) {
    if (settings.cut == 0 || --s->until_cut > 0) return;
    device_write(YIELD, 0);
    s->until_cut = 1 + mix(s->random++) % (2 * settings.cut);
}

// One role of a test: what it does to instance `i`, whose variables are x, y, z; `a` and `b` are what it saw.
#define ROLE(name, ...)                                                                                            \
    static void name(struct sweep *s) {                                                                            \
        for (u64 i = 0; i < s->count; i++) {                                                                       \
            u8 *at = s->base + i * s->between_instances;                                                           \
            volatile u64 *x = (volatile u64 *)at, *y = (volatile u64 *)(at + s->between_locations);                \
            u64 a = 0, b = 0;                                                                                      \
            (void)x, (void)y;                                                                                      \
            __VA_ARGS__                                                                                            \
            s->r0[i] = a;                                                                                          \
            s->r1[i] = b;                                                                                          \
            cut(s);                                                                                                \
        }                                                                                                          \
    }

ROLE(write_x, { *x = s->first; })
ROLE(write_y, { *y = s->first; })
ROLE(write_x_y, { *x = s->first; *y = s->first; })
ROLE(write_x_then_2y, { *x = s->first; *y = s->second; })
ROLE(write_y_then_2x, { *y = s->first; *x = s->second; })
ROLE(write_x_fence_read_y, { *x = s->first; fence(); a = *y; })
ROLE(write_y_fence_read_x, { *y = s->first; fence(); a = *x; })
ROLE(write_x_read_y, { *x = s->first; a = *y; })
ROLE(write_y_read_x, { *y = s->first; a = *x; })
ROLE(read_x_write_y, { a = *x; *y = s->first; })
ROLE(read_y_write_x, { a = *y; *x = s->first; })
ROLE(read_x_y, { a = *x; b = *y; })
ROLE(read_y_x, { a = *y; b = *x; })
ROLE(read_x_x, { a = *x; b = *x; })

typedef void role_sweep(struct sweep *s);

// What an instance came to: what each role saw, as "new" or not, and which write to x and y came last.
struct outcome {
    bool a[4], b[4];
    bool x_first, y_first;
};

static bool both_old(const struct outcome *o) { return !o->a[0] && !o->a[1]; }
static bool both_new(const struct outcome *o) { return o->a[0] && o->a[1]; }
static bool second_without_first(const struct outcome *o) { return o->a[1] && !o->b[1]; }
static bool opposite_orders(const struct outcome *o) { return o->a[2] && !o->b[2] && o->a[3] && !o->b[3]; }
static bool first_writes_last(const struct outcome *o) { return o->x_first && o->y_first; }
static bool effect_without_cause(const struct outcome *o) { return o->a[1] && o->a[2] && !o->b[2]; }

struct outcome_test {
    role_sweep *roles[4];
    bool (*outcome)(const struct outcome *o);
    bool allowed; // counted, not forbidden
};

// In the order of outcome_tests below.
static const struct outcome_test details[] = {
    {{write_x_fence_read_y, write_y_fence_read_x}, both_old, false},
    {{write_x_read_y, write_y_read_x}, both_old, true},
    {{write_x_y, read_y_x}, second_without_first, false},
    {{read_x_write_y, read_y_write_x}, both_new, false},
    {{write_x, write_y, read_x_y, read_y_x}, opposite_orders, false},
    {{write_x, read_x_x}, second_without_first, false},
    {{write_x_then_2y, write_y_then_2x}, first_writes_last, false},
    {{write_x, read_x_write_y, read_y_x}, effect_without_cause, false},
};

u64 variables_bytes(u64 vcpus) {
    u64 together = pages(settings.batch * CELL), apart = LOCATIONS * pages(settings.batch * 8);
    u64 group = together > apart ? together : apart;
    return vcpus * (group > 4 * PAGE ? group : 4 * PAGE) + PAGE;
}

static struct sweep *prepare(struct vcpu *cpu, u64 roles, enum layout layout) {
    struct sweep *s = &sweeps[cpu->index].sweep;
    u64 group = cpu->index / roles;
    s->between_locations = layout == SAME ? 8 : pages(settings.batch * 8);
    s->between_instances = layout == SAME ? CELL : 8;
    u64 group_bytes = layout == SAME ? pages(settings.batch * CELL) : LOCATIONS * pages(settings.batch * 8);
    s->base = (u8 *)variables + group * group_bytes;
    s->r0 = results_of(cpu->index);
    s->r1 = s->r0 + settings.batch;
    s->random = cpu->index << 32;
    s->until_cut = 1 + mix(s->random++) % (2 * settings.cut + 1);
    return s;
}

static struct outcome outcome_of(const struct sweep *s, u64 first_vcpu, u64 roles, u64 i) {
    struct outcome o = {0};
    for (u64 role = 0; role < roles; role++) {
        const u64 *r0 = results_of(first_vcpu + role);
        o.a[role] = r0[i] >= s->first;
        o.b[role] = r0[settings.batch + i] >= s->first;
    }
    u8 *at = s->base + i * s->between_instances;
    o.x_first = *(volatile u64 *)at == s->first;
    o.y_first = *(volatile u64 *)(at + s->between_locations) == s->first;
    return o;
}

// Looks at a batch's outcomes; returns how many were the one asked about (only where that is allowed).
static u64 judge(struct vcpu *cpu, const struct test *test, enum layout layout, u64 done) {
    const struct outcome_test *detail = &details[test - outcome_tests];
    const struct sweep *s = &sweeps[cpu->index].sweep;
    u64 seen = 0;
    for (u64 i = 0; i < s->count; i++) {
        struct outcome o = outcome_of(s, cpu->index, test->roles, i);
        if (!detail->outcome(&o)) continue;
        seen++;
        if (detail->allowed) continue;
        u64 values[8];
        for (u64 role = 0; role < test->roles; role++) {
            values[2 * role] = results_of(cpu->index + role)[i];
            values[2 * role + 1] = results_of(cpu->index + role)[settings.batch + i];
        }
        say(cpu, "new values are %lu and %lu; each role's two results follow\n", s->first, s->second);
        forbidden(cpu, test, layout, done + i, values, 2 * test->roles);
    }
    return seen;
}

static void run(struct vcpu *cpu, const struct test *test, enum layout layout) {
    const struct outcome_test *detail = &details[test - outcome_tests];
    u64 roles = test->roles, role = cpu->index % roles, seen = 0;
    bool idle = cpu->index - role + roles > cpu->count;
    struct sweep *s = idle ? NULL : prepare(cpu, roles, layout);
    for (u64 done = 0, batch = 1; done < settings.iterations; done += settings.batch, batch++) {
        barrier(cpu);
        if (!idle) {
            u64 left = settings.iterations - done;
            s->count = left < settings.batch ? left : settings.batch;
            s->first = 2 * batch;
            s->second = 2 * batch + 1;
            detail->roles[role](s);
        }
        barrier(cpu);
        if (!idle && role == 0) seen += judge(cpu, test, layout, done);
    }
    if (detail->allowed && settings.info && !idle && role == 0)
        say(cpu, "litmus %s %s: saw %lu relaxed outcomes\n", test->name, layout_name(layout), seen);
}

const struct test outcome_tests[] = {
    {"sb", 2, run},   {"sb-nofence", 2, run}, {"mp", 2, run},   {"lb", 2, run},
    {"iriw", 4, run}, {"corr", 2, run},       {"2+2w", 2, run}, {"wrc", 3, run},
    {NULL, 0, NULL},
};
