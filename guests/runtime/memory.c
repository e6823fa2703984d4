// The four functions a compiler may call, and an allocator that only grows.
#include "internal.h"

#define LOW_END (3ul << 30)
#define HIGH_START (4ul << 30)
#define STACK_BYTES (64ul << 10)

u64 memory_bytes;
static struct span regions[2];

#ifndef SAMSARA_HOSTED
void *memcpy(void *to, const void *from, size_t bytes) {
    void *at = to;
    __asm__ volatile("rep movsb" : "+D"(at), "+S"(from), "+c"(bytes) : : "memory");
    return to;
}

void *memset(void *to, int value, size_t bytes) {
    void *at = to;
    __asm__ volatile("rep stosb" : "+D"(at), "+c"(bytes) : "a"(value) : "memory");
    return to;
}

void *memmove(void *to, const void *from, size_t bytes) {
    if ((u64)to - (u64)from >= bytes) return memcpy(to, from, bytes);
    volatile u8 *target = to;
    const u8 *source = from;
    while (bytes--) target[bytes] = source[bytes];
    return to;
}

int memcmp(const void *left, const void *right, size_t bytes) {
    const volatile u8 *a = left;
    const u8 *b = right;
    for (size_t i = 0; i < bytes; i++) {
        u8 other = a[i];
        if (other != b[i]) return other < b[i] ? -1 : 1;
    }
    return 0;
}

extern u8 guest_end[];

static struct span between(u64 start, u64 end) {
    return end > start ? (struct span){start, end - start} : (struct span){start, 0};
}

void usable_memory(u64 memory, struct span usable[2]) {
    // The loader's stacks and those of its page tables that did not fit below 2 MiB (one 512th, rounded up well).
    u64 reserve = MAX_VCPUS * STACK_BYTES + memory / 256;
    u64 low_end = memory < LOW_END ? memory : LOW_END;
    u64 start = (u64)guest_end;
    usable[0] = between(start, low_end > reserve ? low_end - reserve : 0);
    usable[1] = (struct span){HIGH_START, 0};
    if (memory > LOW_END + reserve) usable[1].bytes = memory - LOW_END - reserve;
}
#endif

u64 memory_end(void) { return memory_bytes <= LOW_END ? memory_bytes : memory_bytes - LOW_END + HIGH_START; }

void alloc_begin(u64 memory) {
    memory_bytes = memory;
    usable_memory(memory, regions);
    for (u64 i = 0; i < 2; i++) regions[i].bytes &= ~(PAGE - 1);
}

void *alloc(struct vcpu *cpu, u64 bytes) {
    u64 whole = (bytes + PAGE - 1) & ~(PAGE - 1);
    for (u64 i = 0; i < 2; i++) {
        struct span *region = &regions[i];
        if (whole < bytes || region->bytes < whole) continue;
        void *at = (void *)region->start;
        region->start += whole;
        region->bytes -= whole;
        return at;
    }
    u64 left = regions[0].bytes + regions[1].bytes;
    fail(cpu, BAD_PARAMS, "%lu more bytes are needed, %lu of %lu are left: raise vm.memory", bytes, left, memory_bytes);
}

void alloc_rest(struct span rest[2]) {
    for (u64 i = 0; i < 2; i++) {
        rest[i] = regions[i];
        regions[i].start += regions[i].bytes;
        regions[i].bytes = 0;
    }
}
