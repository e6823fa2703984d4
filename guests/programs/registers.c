// Every register a program can hold a value in keeps it: across YIELD, where a chunk ends, and across a stretch of
// computing, where the machine may end a chunk, or go back to its start, at any instruction.
#include "guest.h"

enum { N, LOOPS };
struct param program_params[] = {
    NUMBER("n", 1000, 1, 1ul << 40),
    NUMBER("loops", 1000, 0, 1ul << 20), // instructions (about) between the YIELD and the look
    PARAMS_END,
};

struct image {
    u64 general[14]; // rax rbx rdx rsi rdi rbp r8 to r15; rcx counts, rsp stays
    u64 flags;
    u32 mxcsr;
    u32 x87_control;
    u8 vectors[16][32]; // xmm or ymm
    double x87[8];
};

_Static_assert(offsetof(struct image, flags) == 112, "as hold.S has it");
_Static_assert(offsetof(struct image, mxcsr) == 120, "as hold.S has it");
_Static_assert(offsetof(struct image, vectors) == 128, "as hold.S has it");
_Static_assert(offsetof(struct image, x87) == 640, "as hold.S has it");

// In registers/hold.S: loads `in`, writes to `yield_address`, counts `loops` down, stores `out`.
typedef void hold(const struct image *in, struct image *out, u64 loops, u64 yield_address);
hold hold_sse, hold_avx;

static struct work {
    struct image in, out;
    u64 sink;
} OWN_PAGE works[MAX_VCPUS];

#define FLAGS 0xCD5ul          // carry, parity, adjust, zero, sign, direction, overflow
#define MXCSR_MASKED 0x1F80u   // every exception masked
#define MXCSR_FREE 0xE07Fu     // rounding, flush to zero, denormals are zero, exception flags
#define X87_MASKED 0x037Fu
#define X87_ROUNDING 0x0C00u

static bool has_avx(void) {
    u32 eax = 1, ebx, ecx = 0, edx;
    __asm__ volatile("cpuid" : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(edx));
    if ((ecx >> 27 & 3) != 3) return false; // OSXSAVE and AVX
    __asm__ volatile("xgetbv" : "=a"(eax), "=d"(edx) : "c"(0));
    return (eax & 6) == 6;
}

// Other values for every vCPU and turn, all of them allowed ones.
static void fill(struct image *in, u64 seed, u64 vector_bytes) {
    u64 next = mix(seed);
    memset(in, 0, sizeof *in);
    for (u64 i = 0; i < 14; i++) in->general[i] = mix(next++);
    in->flags = mix(next++) & FLAGS;
    in->mxcsr = MXCSR_MASKED | (u32)(mix(next++) & MXCSR_FREE);
    in->x87_control = X87_MASKED | (u32)(mix(next++) & X87_ROUNDING);
    for (u64 i = 0; i < 16; i++)
        for (u64 byte = 0; byte < vector_bytes; byte++) in->vectors[i][byte] = (u8)mix(next++);
    for (u64 i = 0; i < 8; i++) in->x87[i] = unit(next++);
}

static u64 yield_address(struct work *work) {
#ifdef SAMSARA_HOSTED
    return (u64)&work->sink;
#else
    (void)work;
    return DEVICE_PAGE + YIELD;
#endif
}

static void check(struct vcpu *cpu, struct work *work, u64 turn) {
    work->out.flags &= FLAGS;
    const u64 *in = (const u64 *)&work->in, *out = (const u64 *)&work->out;
    for (u64 i = 0; i < sizeof(struct image) / 8; i++)
        if (in[i] != out[i])
            fail(cpu, WRONG, "vcpu %lu turn %lu: word %lu of the registers is %lx, not %lx", cpu->index, turn, i,
                 out[i], in[i]);
}

void program_run(struct vcpu *cpu) {
    struct work *work = &works[cpu->index];
    bool avx = has_avx();
    hold *all = avx ? hold_avx : hold_sse;
    u64 n = param(N), step = n / 16 + 1;
    for (u64 turn = 0; turn < n; turn++) {
        fill(&work->in, (cpu->index << 48) + turn, avx ? 32 : 16);
        all(&work->in, &work->out, param(LOOPS), yield_address(work));
        check(cpu, work, turn);
        if (cpu->index == 0 && (turn + 1) % step == 0) device_write(MARK, turn + 1);
    }
    barrier(cpu);
    if (cpu->index == 0) say(cpu, "registers ok %lu\n", n);
}
