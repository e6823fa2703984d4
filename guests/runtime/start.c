// The life of a run: entry on every vCPU, setup on vCPU 0, the program, the end.
#include "guest.h"
#include "internal.h"

static struct vcpu vcpus[MAX_VCPUS];

static struct {
    u64 finished;
} OWN_PAGE ending;

__attribute__((weak)) void program_setup(struct vcpu *cpu) { (void)cpu; }

NORETURN void halt(void) {
    for (;;) device_write(HALT, 0);
}

NORETURN void exit_with(u64 status) {
    for (;;) device_write(EXIT, status);
}

// vCPU 0 ends the run; the others count themselves out and stop, so that nobody spins while vCPU 0 works on.
static void finish(struct vcpu *cpu) {
    say_flush(cpu);
    if (cpu->index != 0) {
        fetch_add(&ending.finished, 1);
        halt();
    }
    WAIT_UNTIL(load(&ending.finished) == cpu->count - 1);
    exit_with(RIGHT);
}

void guest_start(u64 index, u64 count, const char *params, u64 memory) {
    if (index >= MAX_VCPUS) halt();
    struct vcpu *cpu = &vcpus[index];
    cpu->index = index;
    cpu->count = count;
    if (index == 0) {
        if (count == 0 || count > MAX_VCPUS) fail(cpu, BAD_PARAMS, "%lu vcpus: 1 to 16 are possible", count);
        alloc_begin(memory);
        params_parse(cpu, params);
        program_setup(cpu);
    }
    barrier(cpu);
    program_run(cpu);
    finish(cpu);
}

struct range share_of(const struct vcpu *cpu, u64 total) {
    u64 each = total / cpu->count, more = total % cpu->count;
    u64 from = cpu->index * each + (cpu->index < more ? cpu->index : more);
    return (struct range){from, from + each + (cpu->index < more)};
}

struct range share_of_groups(const struct vcpu *cpu, u64 total, u64 each) {
    struct range groups = share_of(cpu, total / each + (total % each != 0));
    u64 from = groups.from * each, to = groups.to * each;
    return (struct range){from < total ? from : total, to < total ? to : total};
}
