// Ends with the status asked for. The low byte of EXIT is the status.
#include "guest.h"

enum { STATUS };
struct param program_params[] = {
    NUMBER("status", 0, 0, 255),
    PARAMS_END,
};

void program_run(struct vcpu *cpu) {
    if (cpu->index == cpu->count - 1) exit_with(param(STATUS) | 0x5500);
    halt();
}
