/* Chains of descriptors: right ones, and how they are spoilt.

   A device does what descriptors say. So all memory that they name is in the arena, where nothing of this kernel is;
   and addresses of no memory have bits that keep parts of them, taken for something else, from being addresses of it. */

#include "rings.h"

u64 any_buffer(int cpu) { return orders.arena + BUFFERS_AT + 512 * below(cpu, (ARENA_BYTES - 2 * BUFFERS_AT) / 512); }

static u64 no_address(int cpu)
{
    switch (below(cpu, 4)) {
    case 0:
        return orders.arena + ARENA_BYTES + below(cpu, 1 << 20);
    case 1:
        return VIRTIO + below(cpu, 1 << 20);
    case 2:
        return random_bits(cpu) | 1ul << 63 | 1ul << 31;
    default:
        return ~0ul - below(cpu, 64);
    }
}

u64 any_address(int cpu)
{
    switch (below(cpu, 5)) {
    case 0:
        return no_address(cpu);
    case 1:
        /* Rings and tables. */
        return orders.arena + 8 * below(cpu, BUFFERS_AT / 8);
    case 2:
        return orders.arena + ARENA_BYTES - 16 - 16 * below(cpu, 4);
    default:
        return any_buffer(cpu);
    }
}

u32 any_bytes(int cpu)
{
    static const u32 sizes[] = {0, 1, 11, 12, 13, 16, 25, 26, 27, 511, 512, 513, 1526, 1527, 4096, 65548, 65549, 1 << 20, (1 << 20) + 512, ~0u};
    return one_in(cpu, 8) ? (u32)random_bits(cpu) : sizes[below(cpu, sizeof(sizes) / sizeof(*sizes))];
}

struct descriptor any_descriptor(int cpu)
{
    u16 flags = (u16)below(cpu, 8), next = (u16)below(cpu, one_in(cpu, 4) ? 0x10000 : SLOTS * CHAINS);
    if (one_in(cpu, 8))
        flags |= (u16)(random_bits(cpu) & ~7ul);
    return (struct descriptor){any_address(cpu), any_bytes(cpu), flags, next};
}

void put_descriptor(u64 table, u64 slot, struct descriptor descriptor)
{
    volatile struct descriptor *place = (volatile struct descriptor *)(table + 16 * slot);
    place->address = descriptor.address;
    place->bytes = descriptor.bytes;
    place->flags = descriptor.flags;
    place->next = descriptor.next;
}

/* Its header; of a discard, its range as well, in `data`. */
static void put_request(int cpu, u64 header, u64 data, u32 kind)
{
    u64 sector = below(cpu, one_in(cpu, 4) ? 1ul << 40 : 4096);
    store32(header, kind);
    store32(header + 4, 0);
    store32(header + 8, (u32)sector);
    store32(header + 12, (u32)(sector >> 32));
    if (kind == 11 || kind == 13) {
        store32(data, (u32)below(cpu, 5000));
        store32(data + 4, 0);
        store32(data + 8, (u32)below(cpu, 1 << 16));
        store32(data + 12, (u32)below(cpu, 3));
    }
}

static void put_block_chain(int cpu, u64 table, u16 slot)
{
    static const u32 kinds[] = {0, 1, 4, 8, 11, 13};
    u32 kind = kinds[below(cpu, sizeof(kinds) / sizeof(*kinds))];
    u64 header = any_buffer(cpu), data = any_buffer(cpu);
    u16 direction = kind == 0 || kind == 8 ? WRITE : 0;
    put_request(cpu, header, data, kind);
    put_descriptor(table, slot, (struct descriptor){header, 16, NEXT, slot + 1});
    u32 bytes = kind >= 11 ? 16 : 512 * (u32)(1 + below(cpu, 8));
    put_descriptor(table, slot + 1ul, (struct descriptor){data, bytes, NEXT | direction, slot + 2});
    put_descriptor(table, slot + 2ul, (struct descriptor){any_buffer(cpu), 1, WRITE, 0});
}

void put_chains(int cpu, u32 queue)
{
    u64 table = table_of(queue);
    u32 id = reg(DEVICE_ID);
    u16 direction = id == ENTROPY_ID || queue == 0 ? WRITE : 0;
    for (u16 slot = 0; slot < SLOTS * CHAINS; slot += SLOTS) {
        if (id == BLOCK_ID) {
            put_block_chain(cpu, table, slot);
            continue;
        }
        for (u16 at = 0; at < SLOTS; at++) {
            u16 more = at + 1 < SLOTS ? NEXT : 0;
            u32 bytes = direction ? 1526 : 12 + (u32)below(cpu, 400);
            put_descriptor(table, slot + at, (struct descriptor){any_buffer(cpu), bytes, more | direction, slot + at + 1});
        }
    }
}

/* The descriptor in the middle names another buffer. */
static void name(u64 table, u64 first, u64 address, u32 bytes)
{
    volatile struct descriptor *place = (volatile struct descriptor *)(table + 16 * (first + 1));
    place->address = address;
    place->bytes = bytes;
    if (bytes == 0 || address < orders.arena + BUFFERS_AT)
        place->flags |= WRITE;
}

static void point_to_table(u64 table, u64 first, u64 indirect, u32 bytes, u16 flags)
{
    put_descriptor(table, first, (struct descriptor){indirect, bytes, INDIRECT | flags, (u16)first});
}

static void spoil_indirect(int cpu, u64 table, u64 first, int defect)
{
    u64 indirect = orders.arena + INDIRECT_AT;
    for (u16 slot = 0; slot < 8; slot++) {
        u16 more = slot < 7 || defect == INDIRECT_LOOP ? NEXT : 0;
        put_descriptor(indirect, slot, (struct descriptor){any_buffer(cpu), 64, more, (slot + 1) % 8});
    }
    if (defect == NESTED)
        put_descriptor(indirect, 2, (struct descriptor){indirect, 128, INDIRECT, 0});
    static const u32 sizes[] = {128, 128, 120 + 1, 0, ~0u & ~15u, 128, 16 * SLOTS * CHAINS};
    u64 to = defect == INDIRECT_OUTSIDE ? no_address(cpu) : defect == INDIRECT_SELF ? table : indirect;
    u16 flags = one_in(cpu, 2) ? NEXT : one_in(cpu, 2) ? WRITE : 0;
    point_to_table(table, first, to, sizes[defect - NESTED], flags);
}

/* More than a chain may have, and more than is shown or sent of one. */
static void spoil_sizes(int cpu, u64 table, int defect)
{
    for (u64 slot = 0; slot < SLOTS * CHAINS; slot++) {
        volatile struct descriptor *place = (volatile struct descriptor *)(table + 16 * slot);
        if (defect == HUGE)
            place->bytes = 1u << below(cpu, 22);
        else if (one_in(cpu, 2))
            place->bytes = any_bytes(cpu);
        else if (place->address >= orders.arena && place->address < orders.arena + ARENA_BYTES - 64)
            /* What was a header is one no more. */
            store32(place->address & ~7ul, (u32)random_bits(cpu));
    }
}

void spoil_chain(int cpu, u64 table, u64 first, int defect)
{
    volatile struct descriptor *middle = (volatile struct descriptor *)(table + 16 * (first + 1));
    volatile struct descriptor *last = middle + 1;
    switch (defect) {
    case LOOP:
        middle->next = (u16)(first + 1);
        break;
    case CYCLE:
        last->flags |= NEXT;
        last->next = (u16)first;
        break;
    case NEXT_BEYOND:
        middle->next = (u16)(RING_MAX + below(cpu, 0xff00));
        break;
    case OUTSIDE:
        name(table, first, orders.arena + ARENA_BYTES, 512);
        break;
    case PAST_END:
        name(table, first, orders.arena + ARENA_BYTES - 256, 512);
        break;
    case IN_HOLE:
        name(table, first, one_in(cpu, 2) ? LOCAL_APIC : VIRTIO, 512);
        break;
    case HIGHEST:
        name(table, first, ~0ul - below(cpu, 600), 512);
        break;
    case INTO_DESCRIPTORS:
        name(table, first, table, 512);
        break;
    case INTO_AVAILABLE:
        name(table, first, table + AVAILABLE_AT, 512);
        break;
    case INTO_USED:
        name(table, first, table + USED_AT, 512);
        break;
    case INTO_LEAVES:
        name(table, first, orders.arena + LEAVES_AT, 512);
        break;
    case ZERO:
        name(table, first, one_in(cpu, 2) ? middle->address : no_address(cpu), 0);
        break;
    case READ_AFTER_WRITE:
        middle->flags |= WRITE;
        last->flags &= (u16)~WRITE;
        break;
    case HUGE:
    case HEADERS:
        spoil_sizes(cpu, table, defect);
        break;
    case MIXED:
        for (u64 slot = 0; slot < SLOTS * CHAINS; slot++)
            put_descriptor(table, slot, any_descriptor(cpu));
        break;
    default:
        if (defect >= NESTED && defect <= INDIRECT_SELF)
            spoil_indirect(cpu, table, first, defect);
    }
}
