// Every vCPU greets, in index order.
#include "guest.h"

enum { VIA };
enum { DMA, REGISTER, BYTE };
struct param program_params[] = {
    CHOICE("via", DMA, "dma|register|byte"),
    PARAMS_END,
};

static struct {
    u64 turn;
} OWN_PAGE order;

// The same greeting through CONSOLE, one access a character.
static void greet_by_register(struct vcpu *cpu) {
    const char *before = "hello from vcpu ";
    for (const char *at = before;; at++) {
        char c = *at ? *at : '\n';
        if (!*at) {
            if (cpu->index >= 10) device_write(CONSOLE, '1');
            device_write(CONSOLE, '0' + cpu->index % 10);
        }
        if (param(VIA) == BYTE) {
            device_write_byte(CONSOLE, (u8)c);
        } else {
            device_write(CONSOLE, (u64)c | 0xABCD00ul); // only the low byte counts
        }
        if (!*at) return;
    }
}

void program_run(struct vcpu *cpu) {
    WAIT_UNTIL(load(&order.turn) == cpu->index);
    if (param(VIA) == DMA) {
        say(cpu, "hello from vcpu %lu\n", cpu->index);
    } else {
        greet_by_register(cpu);
    }
    device_write(MARK, cpu->index + 1);
    store(&order.turn, cpu->index + 1);
    publish();
}
