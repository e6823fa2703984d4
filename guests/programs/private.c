// Computing on private memory: every vCPU reads and writes at random over pages of its own. No conflicts at all.
#include "guest.h"

enum { N, PAGES };
struct param program_params[] = {
    NUMBER("n", 10000000, 1, 1ul << 40),
    NUMBER("pages", 64, 1, 1ul << 20),
    PARAMS_END,
};

static u64 *memory;
static struct partial partials[MAX_VCPUS];

void program_setup(struct vcpu *cpu) {
    memory = alloc(cpu, cpu->count * param(PAGES) * PAGE);
}

// n steps; half of them add a number to a word, half read one. The words must add up to what was added.
static void work(struct vcpu *cpu, u64 *words, u64 count, struct partial *result) {
    u64 state = mix(cpu->index), added = 0, read = 0;
    u64 n = param(N), step = n / 16 + 1;
    for (u64 i = 0; i < n; i++) {
        state = state * 6364136223846793005ul + 1442695040888963407ul;
        u64 *word = &words[((state >> 32) * count) >> 32];
        if (state & (1ul << 20)) {
            *word += state;
            added += state;
        } else {
            read = ((read << 5) | (read >> 59)) ^ *word;
        }
        if (cpu->index == 0 && (i + 1) % step == 0) device_write(MARK, i + 1);
    }
    result->value = added;
    result->other = read;
}

void program_run(struct vcpu *cpu) {
    u64 count = param(PAGES) * PAGE / 8;
    u64 *words = memory + cpu->index * count;
    memset(words, 0, count * 8);
    struct partial *result = &partials[cpu->index];
    work(cpu, words, count, result);
    u64 sum = 0;
    for (u64 i = 0; i < count; i++) sum += words[i];
    if (sum != result->value)
        fail(cpu, WRONG, "vcpu %lu: words add up to %lx, not %lx", cpu->index, sum, result->value);
    barrier(cpu);
    if (cpu->index != 0) return;
    for (u64 i = 0; i < cpu->count; i++)
        say(cpu, "private %lu sum %016lx read %016lx\n", i, partials[i].value, partials[i].other);
}
