/* What the arena holds, and how rings are spoilt. */

#ifndef RINGS_H
#define RINGS_H

#include "virtio.h"

/* Two queues' rings, an indirect table, a page table, and buffers from there on. */
enum { QUEUE_BYTES = 0x4000, AVAILABLE_AT = 0x1000, USED_AT = 0x2000, INDIRECT_AT = 0x8000, LEAVES_AT = 0x9000, BUFFERS_AT = 0x10000 };
enum { SLOTS = 3, CHAINS = 8 };

enum defect {
    NONE,
    /* Of a descriptor. */
    LOOP, CYCLE, NEXT_BEYOND, OUTSIDE, PAST_END, IN_HOLE, HIGHEST,
    INTO_DESCRIPTORS, INTO_AVAILABLE, INTO_USED, INTO_LEAVES,
    ZERO, HUGE, READ_AFTER_WRITE, HEADERS,
    /* Of an indirect table. */
    NESTED, INDIRECT_LOOP, INDIRECT_ODD, INDIRECT_ZERO, INDIRECT_HUGE, INDIRECT_OUTSIDE, INDIRECT_SELF,
    /* Of the available ring. */
    HEAD_BEYOND, SAME_HEADS, JUMP, BACK,
    /* Of the queue. */
    SIZE_ZERO, SIZE_ODD, SIZE_BEYOND, RINGS_ODD, RINGS_OUTSIDE, RINGS_HIGH, RINGS_AT_ZERO, RINGS_SAME, RINGS_OVERLAP,
    /* Of the order of things. */
    FEATURES_WRONG, OUT_OF_TURN, UNKNOWN_QUEUE, RESET_MEANWHILE, FAILED_MEANWHILE, UNREADY_MEANWHILE, MOVED_MEANWHILE,
    MIXED,
    DEFECTS
};

struct descriptor any_descriptor(int cpu);
u64 any_buffer(int cpu);
u64 any_address(int cpu);
u32 any_bytes(int cpu);
void put_descriptor(u64 table, u64 slot, struct descriptor descriptor);
/* Right chains, whose first descriptors are SLOTS apart. */
void put_chains(int cpu, u32 queue);
/* The descriptors of one chain, or all of them. */
void spoil_chain(int cpu, u64 table, u64 first, int defect);

static inline u64 table_of(u32 queue) { return orders.arena + queue * QUEUE_BYTES; }
static inline volatile struct available *available_of(u32 queue)
{
    return (volatile struct available *)(table_of(queue) + AVAILABLE_AT);
}

#endif
