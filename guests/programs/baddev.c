// Accesses to the device page that the contract does not allow. The machine stops; being still there is a failure.
#include "guest.h"

enum { KIND };
enum {
    SIZE1, SIZE2, SIZE4, SIZE16, MISALIGNED, ACROSS,
    UNKNOWN, WRITE_UNKNOWN, READ_EXIT, WRITE_CLOCK, LOCKED, STRING, OUTSIDE,
};
struct param program_params[] = {
    CHOICE("kind", SIZE4,
           "size1|size2|size4|size16|misaligned|across|unknown|writeunknown|readexit|writeclock|locked|string|outside"),
    PARAMS_END,
};

#define AT(offset) ((volatile void *)(DEVICE_PAGE + (offset)))
// In the hole between 3 GiB and 4 GiB, where no device is.
#define HOLE 0xE0000000ul

static u64 words[4];

static void access_badly(u64 kind) {
    u64 value;
    switch (kind) {
    case SIZE1: __asm__ volatile("movb $1, (%0)" : : "r"(AT(MARK)) : "memory"); break;
    case SIZE2: __asm__ volatile("movw $1, (%0)" : : "r"(AT(MARK)) : "memory"); break;
    case SIZE4: __asm__ volatile("movl $1, (%0)" : : "r"(AT(MARK)) : "memory"); break;
    case SIZE16: __asm__ volatile("movups %%xmm0, (%0)" : : "r"(AT(MARK)) : "memory"); break;
    case MISALIGNED: __asm__ volatile("movq %0, 4(%0)" : : "r"(AT(MARK)) : "memory"); break;
    case ACROSS: __asm__ volatile("movq (%1), %0" : "=r"(value) : "r"(AT(PAGE - 4)) : "memory"); break;
    case UNKNOWN: __asm__ volatile("movq (%1), %0" : "=r"(value) : "r"(AT(0xF00)) : "memory"); break;
    case WRITE_UNKNOWN: __asm__ volatile("movq %0, (%0)" : : "r"(AT(0x48)) : "memory"); break;
    case READ_EXIT: __asm__ volatile("movq (%1), %0" : "=r"(value) : "r"(AT(EXIT)) : "memory"); break;
    case WRITE_CLOCK: __asm__ volatile("movq %0, (%0)" : : "r"(AT(CLOCK)) : "memory"); break;
    case LOCKED: __asm__ volatile("lock addq $1, (%0)" : : "r"(AT(EXIT)) : "memory"); break;
    case STRING: __asm__ volatile("movq %0, %%rdi\n\tmovq %1, %%rsi\n\tmovl $16, %%ecx\n\trep movsb"
                                  : : "r"(AT(MARK)), "r"(words) : "rdi", "rsi", "rcx", "memory"); break;
    default: __asm__ volatile("movq (%1), %0" : "=r"(value) : "r"(HOLE) : "memory"); break;
    }
}

void program_run(struct vcpu *cpu) {
    if (cpu->index != 0) halt();
    access_badly(param(KIND));
    fail(cpu, WRONG, "bad device access accepted");
}
