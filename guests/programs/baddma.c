// Gives INPUT or OUTPUT a descriptor that is not in order. The machine stops; being still there is a failure, except
// for kind=toolong: INPUT may then move fewer bytes than asked for, and OUTPUT has no limit but memory.
#include "guest.h"

enum { DIRECTION, KIND };
enum { IN, OUT };
enum { OUTSIDE, STRADDLE, WRAPPING, HOLE, DEVICE, DESCRIPTOR, MISALIGNED, DESCRIPTOR_END, TOOLONG };
struct param program_params[] = {
    CHOICE("dir", IN, "input|output"),
    CHOICE("kind", OUTSIDE, "outside|straddle|wrapping|hole|device|descriptor|misaligned|descriptorend|toolong"),
    PARAMS_END,
};

#define TOO_LONG (2 * MIB)

static struct dma descriptors[2] OWN_PAGE;
static u8 *good; // a buffer large enough for all that is asked for

void program_setup(struct vcpu *cpu) { good = alloc(cpu, TOO_LONG); }

// The address to give to the register; fills in the descriptor.
static u64 prepare(u64 kind) {
    struct dma *dma = &descriptors[0];
    *dma = (struct dma){(u64)good, PAGE, 0};
    switch (kind) {
    case OUTSIDE: dma->buffer = memory_end() + (16ul << 30); break;
    case STRADDLE: dma->buffer = memory_end() - 8; break;
    case WRAPPING: dma->buffer = ~0ul - 7; break;
    case HOLE: dma->buffer = 0xE0000000ul; break;
    case DEVICE: dma->buffer = DEVICE_PAGE; break;
    case DESCRIPTOR: return memory_end() + PAGE;
    case MISALIGNED: return (u64)dma + 4;
    case DESCRIPTOR_END: return memory_end() - 8;
    default: dma->bytes = TOO_LONG; break;
    }
    return (u64)dma;
}

void program_run(struct vcpu *cpu) {
    if (cpu->index != 0) halt();
    device_write(param(DIRECTION) == IN ? INPUT : OUTPUT, prepare(param(KIND)));
    u64 done = *(volatile u64 *)&descriptors[0].done;
    if (param(KIND) == TOOLONG && done <= (param(DIRECTION) == IN ? INPUT_MAX_BYTES : TOO_LONG)) {
        // The other vCPUs have halted without counting themselves out, so the run is ended here.
        say(cpu, "\ntoolong ended well\n");
        exit_with(RIGHT);
    }
    fail(cpu, WRONG, "bad descriptor accepted, done %lu", done);
}
