/* Drives a device through right steps, and then gives it rings with a defect: one after the other, and all mixed. The
   other vCPU writes to the rings, and notifies, meanwhile. */

#include "rings.h"

#define WINDOW_OF_LEAVES (1ul << 39)
enum { LOADER_ROOT = 0x9000, PRESENT_WRITABLE = 3, LEAVES = 16 };

PAGE_ALIGNED static u64 leaf_pointers[512], leaf_directory[512];

/* Maps pages of the arena through a table that devices are told to write to. */
static void map_leaves(void)
{
    volatile u64 *leaves = (volatile u64 *)(orders.arena + LEAVES_AT);
    leaf_directory[0] = (u64)leaves | PRESENT_WRITABLE;
    leaf_pointers[0] = (u64)leaf_directory | PRESENT_WRITABLE;
    for (u64 leaf = 0; leaf < LEAVES; leaf++)
        leaves[leaf] = (orders.arena + BUFFERS_AT + leaf * 4096) | PRESENT_WRITABLE;
    ((volatile u64 *)LOADER_ROOT)[1] = (u64)leaf_pointers | PRESENT_WRITABLE;
    /* Also what was kept of the time before. */
    __asm__ volatile("mov %%cr3, %%rax; mov %%rax, %%cr3" : : : "rax", "memory");
}

/* Whatever the table has become: a load gives something, or faults. */
static void use_leaves(int cpu)
{
    u64 value;
    for (int tries = 0; tries < 4; tries++)
        try_load(WINDOW_OF_LEAVES + 4096 * below(cpu, LEAVES) + 8 * below(cpu, 512), &value);
}

/* Where a queue is to be, with a defect. */
static struct queue spoilt_queue(int cpu, u32 index, int defect)
{
    u64 table = table_of(index);
    struct queue queue = {table, table + AVAILABLE_AT, table + USED_AT, RING_MAX >> below(cpu, 3)};
    u64 *ring = one_in(cpu, 3) ? &queue.descriptors : one_in(cpu, 2) ? &queue.available : &queue.used;
    switch (defect) {
    case SIZE_ZERO:
        queue.size = 0;
        break;
    case SIZE_ODD:
        queue.size = 3 + 2 * (u32)below(cpu, 100);
        break;
    case SIZE_BEYOND:
        queue.size = RING_MAX + 1 + (u32)(random_bits(cpu) & 0x7fffffff);
        break;
    case RINGS_ODD:
        *ring += 1;
        break;
    case RINGS_OUTSIDE:
        *ring = orders.arena + ARENA_BYTES - 32 * below(cpu, 2);
        break;
    case RINGS_HIGH:
        *ring = ~0ul << 12 | (below(cpu, 2) ? 0xff0 : 0);
        break;
    case RINGS_AT_ZERO:
        queue.available = 0;
        break;
    case RINGS_SAME:
        queue.used = queue.available;
        break;
    case RINGS_OVERLAP:
        queue.used = queue.descriptors + 4 * below(cpu, 32);
        queue.available = queue.descriptors + 2 * below(cpu, 64);
        break;
    default:
        break;
    }
    return queue;
}

static int is_refused(int defect) { return defect >= SIZE_ZERO && defect <= RINGS_AT_ZERO; }

/* Sets the device up. Says whether it has come that far. */
static int set_up(int cpu, u32 index, int defect)
{
    u64 offered = offered_features();
    u64 features = (one_in(cpu, 2) ? offered & random_bits(cpu) : 0) | VERSION_1;
    if (defect == FEATURES_WRONG)
        features = one_in(cpu, 2) ? features & ~VERSION_1 : features | (random_bits(cpu) & ~offered) | 1ul << 60;
    int has_begun = begin_device(features);
    if (has_begun && defect == FEATURES_WRONG)
        panic("a device takes features that it does not offer");
    for (u32 at = 0; at < queue_count(); at++) {
        struct queue queue = spoilt_queue(cpu, at, at == index ? defect : NONE);
        if (set_queue(at, &queue) && at == index && is_refused(defect))
            panic("a queue that is wrong becomes ready");
    }
    if (defect == OUT_OF_TURN)
        set_reg(STATUS, 0);
    set_reg(STATUS, reg(STATUS) | DRIVER_OK | (defect == OUT_OF_TURN ? 0x30 : 0));
    return has_begun;
}

static void make_available(int cpu, u32 index, int defect)
{
    volatile struct available *available = available_of(index);
    u16 old = available->index, count = CHAINS;
    for (u16 at = 0; at < CHAINS; at++) {
        u16 head = defect == SAME_HEADS ? 0 : SLOTS * at;
        if (defect == HEAD_BEYOND && at == 2)
            head = (u16)(RING_MAX + below(cpu, 0xff00));
        available->ring[at] = head;
    }
    if (defect == JUMP)
        count = (u16)(RING_MAX + 1 + below(cpu, 0xf000));
    if (defect == BACK)
        count = old - 1;
    if (defect == MIXED)
        count = (u16)below(cpu, RING_MAX + 2);
    available->flags = (u16)(one_in(cpu, 4) ? random_bits(cpu) : 0);
    available->index = count;
}

/* What comes while the device is, or could be, at work. */
static void meddle(int cpu, u32 index, int defect)
{
    switch (defect) {
    case UNKNOWN_QUEUE:
        set_reg(QUEUE_NOTIFY, (u32)(queue_count() + random_bits(cpu)));
        set_reg(QUEUE_NOTIFY, ~0u);
        break;
    case RESET_MEANWHILE:
        set_reg(STATUS, 0);
        break;
    case FAILED_MEANWHILE:
        set_reg(STATUS, FAILED | (u32)below(cpu, 256));
        break;
    case UNREADY_MEANWHILE:
        set_reg(QUEUE_SEL, index);
        set_reg(QUEUE_READY, 0);
        break;
    case MOVED_MEANWHILE: {
        struct queue queue = spoilt_queue(cpu, index, RINGS_OVERLAP);
        set_queue(index, &queue);
        break;
    }
    default:
        break;
    }
}

/* One device set up, with one defect. */
static void drive(int cpu)
{
    struct mine *mine = &vcpus[cpu];
    int defect = (int)((mine->rings + orders.seed) % DEFECTS);
    u32 index = (u32)below(cpu, queue_count());
    mine->rings++;
    map_leaves();
    available_of(index)->index = 0;
    put_chains(cpu, index);
    spoil_chain(cpu, table_of(index), SLOTS * below(cpu, CHAINS), defect);
    set_up(cpu, index, defect);
    make_available(cpu, index, defect);
    set_reg(QUEUE_NOTIFY, index);
    meddle(cpu, index, defect);
    for (int looks = 0; looks < 4; looks++)
        set_reg(INTERRUPT_ACK, reg(INTERRUPT_STATUS));
    use_leaves(cpu);
    mine->refusals += (reg(STATUS) & NEEDS_RESET) != 0;
}

/* The other vCPU's part. */
static void scribble(int cpu)
{
    u32 index = (u32)below(cpu, queue_count());
    volatile struct available *available = available_of(index);
    vcpus[cpu].accesses++;
    switch (below(cpu, 4)) {
    case 0:
        available->ring[below(cpu, RING_MAX)] = (u16)below(cpu, SLOTS * CHAINS + 1);
        available->index = (u16)(one_in(cpu, 8) ? random_bits(cpu) : available->index + 1u);
        break;
    case 1:
        put_descriptor(table_of(index), below(cpu, SLOTS * CHAINS), any_descriptor(cpu));
        break;
    case 2:
        put_descriptor(orders.arena + INDIRECT_AT, below(cpu, 8), any_descriptor(cpu));
        break;
    default:
        *(volatile u64 *)(table_of(index) + USED_AT + 8 * below(cpu, 64)) = random_bits(cpu);
    }
    set_reg(QUEUE_NOTIFY, index);
    if (one_in(cpu, 64))
        set_reg(STATUS, 0);
}

void rings_step(int cpu)
{
    if (cpu == 0)
        drive(cpu);
    else
        scribble(cpu);
}
