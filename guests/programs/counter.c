// n increments of one counter, shared out over the vCPUs: by an atomic, or under a lock with plain accesses.
#include "guest.h"

enum { N, MODE };
enum { ATOMIC, LOCK, TICKET };
struct param program_params[] = {
    NUMBER("n", 1000000, 1, 1ul << 40),
    CHOICE("mode", ATOMIC, "atomic|lock|ticket"),
    PARAMS_END,
};

static struct {
    u64 count;
    struct spin_lock spin;
    struct ticket_lock ticket;
} OWN_PAGE shared;

static void add_plain(void) {
    volatile u64 *count = &shared.count;
    *count = *count + 1;
}

static void add_one(u64 mode) {
    switch (mode) {
    case ATOMIC: fetch_add(&shared.count, 1); break;
    case LOCK:
        spin_lock(&shared.spin);
        add_plain();
        spin_unlock(&shared.spin);
        break;
    default:
        ticket_lock(&shared.ticket);
        add_plain();
        ticket_unlock(&shared.ticket);
        break;
    }
}

void program_run(struct vcpu *cpu) {
    struct range mine = share_of(cpu, param(N));
    u64 mode = param(MODE);
    u64 step = (mine.to - mine.from) / 16 + 1;
    for (u64 i = mine.from; i < mine.to; i++) {
        add_one(mode);
        if (cpu->index == 0 && (i + 1) % step == 0) device_write(MARK, load(&shared.count));
    }
    barrier(cpu);
    if (cpu->index != 0) return;
    u64 count = load(&shared.count);
    if (count != param(N)) fail(cpu, WRONG, "counter %lu, not %lu", count, param(N));
    device_write(MARK, count);
    say(cpu, "counter %lu\n", count);
}
