// Raises the exception asked for on the vCPU asked for. The machine stops; being still there is a failure.
#include "guest.h"

enum { KIND, VCPU };
enum { UD, PF, PF_WRITE, PF_EXEC, GP, DE, BP, XM, MF, HLT, IO, LOADER };
struct param program_params[] = {
    CHOICE("kind", UD, "ud|pf|pfwrite|pfexec|gp|de|bp|xm|mf|hlt|io|loader"),
    NUMBER("vcpu", 0, 0, MAX_VCPUS - 1),
    PARAMS_END,
};

#define UNMAPPED 0x7ffffff12000ul
#define NON_CANONICAL 0x8000000000000000ul

static void unmask_sse_and_divide(void) {
    u32 mxcsr = 0x1F80 & ~(1u << 9);
    double one = 1.0, zero = 0.0;
    __asm__ volatile("ldmxcsr %0\n\tdivsd %2, %1" : : "m"(mxcsr), "x"(one), "x"(zero));
}

static void unmask_x87_and_divide(void) {
    uint16_t control = 0x037F & ~(1u << 2);
    __asm__ volatile("fldcw %0\n\tfld1\n\tfldz\n\tfdivrp\n\tfwait" : : "m"(control));
}

// The loader's own memory: tables that the processor needs to report anything at all. Ends in a shutdown.
static void break_the_loader(void) {
    memset((void *)0x1000, 0xFF, 2 * MIB - 0x1000);
    __asm__ volatile("ud2");
}

static void raise(u64 kind) {
    u64 quotient = 1;
    switch (kind) {
    case UD: __asm__ volatile("ud2"); break;
    case PF: __asm__ volatile("movq (%0), %%rax" : : "r"(UNMAPPED) : "rax"); break;
    case PF_WRITE: __asm__ volatile("movq %0, (%0)" : : "r"(UNMAPPED) : "memory"); break;
    case PF_EXEC: __asm__ volatile("call *%0" : : "r"(UNMAPPED) : "memory"); break;
    case GP: __asm__ volatile("movq (%0), %%rax" : : "r"(NON_CANONICAL) : "rax"); break;
    case DE: __asm__ volatile("xorl %%edx, %%edx\n\tdivq %1" : "+a"(quotient) : "r"(0ul) : "rdx"); break;
    case BP: __asm__ volatile("int3"); break;
    case XM: unmask_sse_and_divide(); break;
    case MF: unmask_x87_and_divide(); break;
    case HLT: __asm__ volatile("hlt"); break;
    case IO: __asm__ volatile("outb %%al, $0x80" : : "a"(0)); break;
    default: break_the_loader(); break;
    }
}

void program_setup(struct vcpu *cpu) {
    if (param(VCPU) >= cpu->count) fail(cpu, BAD_PARAMS, "no vcpu %lu: there are %lu", param(VCPU), cpu->count);
}

void program_run(struct vcpu *cpu) {
    if (cpu->index != param(VCPU)) halt();
    raise(param(KIND));
    fail(cpu, WRONG, "the exception did not stop the machine");
}
