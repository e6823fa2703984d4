// Memory-model tests: an outcome that the x86 memory model forbids ends the run with status 1 and says which it was.
// The groups of tests are in litmus/.
#include "litmus/litmus.h"

enum { TEST, LAYOUT, ITERS, BATCH, CUT, INFO };
struct param program_params[] = {
    CHOICE("test", 0,
           "all|sb|sb-nofence|mp|lb|iriw|corr|2+2w|wrc|peterson|dekker|xchg|cas|fetchadd|falseshare|pingpong"),
    CHOICE("layout", 0, "both|same|apart"),
    NUMBER("iters", 100000, 1, 1ul << 40),
    NUMBER("batch", 4096, 1, 1ul << 16), // instances swept between two meetings
    NUMBER("cut", 256, 0, 1ul << 20),    // YIELD after so many instances, on average; 0: never
    CHOICE("info", 0, "no|yes"),         // print counts that depend on timing
    PARAMS_END,
};

struct settings settings;
u64 *variables;
static u64 *results;

u64 results_bytes(void) { return pages(2 * settings.batch * 8); }
u64 *results_of(u64 vcpu) { return results + vcpu * (results_bytes() / 8); }

void program_setup(struct vcpu *cpu) {
    settings = (struct settings){param(ITERS), param(BATCH), param(CUT), param(INFO) == 1};
    variables = alloc(cpu, variables_bytes(cpu->count));
    results = alloc(cpu, cpu->count * results_bytes());
}

void forbidden(struct vcpu *cpu, const struct test *test, enum layout layout, u64 index, const u64 *values, u64 count) {
    say(cpu, "litmus %s %s: FORBIDDEN on vcpu %lu at %lu:", test->name, layout_name(layout), cpu->index, index);
    for (u64 i = 0; i < count; i++) say(cpu, " %lu", values[i]);
    say(cpu, "\n");
    exit_with(WRONG);
}

static void run_test(struct vcpu *cpu, const struct test *test, enum layout layout) {
    if (cpu->index == 0) memset(variables, 0, variables_bytes(cpu->count));
    barrier(cpu);
    test->run(cpu, test, layout);
    barrier(cpu);
    if (cpu->index == 0) say(cpu, "litmus %s %s ok %lu\n", test->name, layout_name(layout), settings.iterations);
}

static bool is_same(const char *a, const char *b) {
    while (*a && *a == *b) a++, b++;
    return *a == *b;
}

void program_run(struct vcpu *cpu) {
    const struct test *groups[] = {outcome_tests, lock_tests, storm_tests};
    char chosen[16];
    u64 done = 0;
    param_choice(TEST, param(TEST), chosen, sizeof chosen);
    for (u64 g = 0; g < sizeof groups / sizeof *groups; g++) {
        for (const struct test *test = groups[g]; test->name; test++) {
            if (param(TEST) != 0 && !is_same(chosen, test->name)) continue;
            if (cpu->count < test->roles) {
                if (cpu->index == 0) say(cpu, "litmus %s needs %lu vcpus\n", test->name, test->roles);
                continue;
            }
            if (param(LAYOUT) != 2) run_test(cpu, test, SAME);
            if (param(LAYOUT) != 1) run_test(cpu, test, APART);
            if (cpu->index == 0) device_write(MARK, ++done);
        }
    }
}
