// Reads the processor's time stamp counter into memory, between work whose result does not depend on it: what it
// stores differs whenever it is run again, the answer does not. Every `every`-th chunk or so has such a read.
#include "guest.h"

enum { N, EVERY };
struct param program_params[] = {
    NUMBER("n", 2000, 1, 1ul << 40), // chunks of each vCPU
    NUMBER("every", 4, 1, 1ul << 32),
    PARAMS_END,
};

static struct {
    u64 stamp;
    u64 sum;
} OWN_PAGE stamps[16];

static u64 read_tsc(void) {
#ifdef SAMSARA_HOSTED
    return 1;
#else
    u64 low, high;
    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
    return high << 32 | low;
#endif
}

void program_run(struct vcpu *cpu) {
    u64 sum = 0;
    for (u64 i = 0; i < param(N); i++) {
        for (u64 j = 0; j < 1000; j++) sum += mix(sum + j);
        if (i % param(EVERY) == 0) stamps[cpu->index].stamp = read_tsc();
        stamps[cpu->index].sum = sum;
        if (cpu->index == 0) device_write(MARK, i + 1);
        publish();
    }
    if (stamps[cpu->index].stamp == 0) fail(cpu, WRONG, "no time stamp on vcpu %lu", cpu->index);
    barrier(cpu);
    if (cpu->index != 0) return;
    for (u64 i = 0; i < cpu->count; i++)
        if (stamps[i].sum != sum) fail(cpu, WRONG, "vcpu %lu came to %016lx, not %016lx", i, stamps[i].sum, sum);
    say(cpu, "sum %016lx\n", sum);
}
