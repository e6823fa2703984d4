// Waiting, the barrier, and two locks.
#include "internal.h"

// Longest run of pauses between two YIELDs: about 3 ms on current processors, so a long wait does not fill the log.
#define MAX_SPINS (1ul << 16)

struct wait wait_begin(void) { return (struct wait){0, spin_limit()}; }

void wait_step(struct wait *wait) {
    __builtin_ia32_pause();
    if (++wait->spins != wait->limit) return; // with limit 0 this never fails to return
    device_write(YIELD, 0);
    wait->spins = 0;
    if (wait->limit < MAX_SPINS) wait->limit *= 2;
}

void publish(void) {
    if (spin_limit() != 0) device_write(YIELD, 0);
}

static struct {
    u64 arrived;
    u64 generation; // the sense, counted on rather than flipped: no vCPU needs a private copy
} OWN_PAGE meeting;

void barrier(struct vcpu *cpu) {
    if (cpu->count == 1) return;
    u64 generation = load(&meeting.generation);
    if (fetch_add(&meeting.arrived, 1) + 1 == cpu->count) {
        store(&meeting.arrived, 0);
        store(&meeting.generation, generation + 1);
        publish();
    } else {
        WAIT_UNTIL(load(&meeting.generation) != generation);
    }
}

void spin_lock(struct spin_lock *lock) {
    while (exchange(&lock->held, 1) != 0) WAIT_UNTIL(load(&lock->held) == 0);
}

void spin_unlock(struct spin_lock *lock) { store(&lock->held, 0); }

void ticket_lock(struct ticket_lock *lock) {
    u64 mine = fetch_add(&lock->next, 1);
    WAIT_UNTIL(load(&lock->serving) == mine);
}

void ticket_unlock(struct ticket_lock *lock) { store(&lock->serving, lock->serving + 1); }
