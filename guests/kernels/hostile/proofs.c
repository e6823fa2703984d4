/* What each virtio device must still do after garbage, once it was reset. */

#include "virtio.h"

enum { BUFFER_BYTES = 2048, SECTOR_BYTES = 512, BUFFERS = 4 };
enum { BLOCK_IN = 0, BLOCK_OUT = 1, BLOCK_FLUSH = 4, BLOCK_ID_TEXT = 8, BLOCK_READ_ONLY = 1 << 5 };
enum { BLOCK_OK = 0, BLOCK_ERROR = 1, BLOCK_UNSUPPORTED = 2 };
enum { RECEIVE = 0, TRANSMIT = 1, NET_HEADER_BYTES = 12, ARP_BYTES = 42 };

struct PAGE_ALIGNED rings {
    PAGE_ALIGNED struct descriptor descriptors[RING_MAX];
    PAGE_ALIGNED volatile struct available available;
    PAGE_ALIGNED volatile struct used used;
};
static struct rings queues[2];
PAGE_ALIGNED static volatile u8 buffers[BUFFERS + 1][BUFFER_BYTES];
PAGE_ALIGNED static volatile struct {
    u32 kind, priority;
    u64 sector;
    u8 status;
} request;

static void begin(u64 features)
{
    if (!begin_device(features | VERSION_1))
        panic("a device does not take features that it offers");
    for (u32 index = 0; index < queue_count(); index++) {
        struct rings *rings = &queues[index];
        struct queue queue = {(u64)rings->descriptors, (u64)&rings->available, (u64)&rings->used, RING_MAX};
        rings->available.flags = rings->available.index = 0;
        rings->used.flags = rings->used.index = 0;
        if (!set_queue(index, &queue))
            panic("a queue does not become ready");
    }
    set_reg(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    if (reg(STATUS) != (ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK))
        panic("a device does not become live");
}

static void describe(u32 queue, u16 slot, volatile const void *address, u32 bytes, u16 flags)
{
    struct descriptor *descriptor = &queues[queue].descriptors[slot];
    descriptor->address = (u64)address;
    descriptor->bytes = bytes;
    descriptor->flags = flags;
    descriptor->next = slot + 1;
}

static void offer(u32 queue, u16 head)
{
    volatile struct available *available = &queues[queue].available;
    available->ring[available->index % RING_MAX] = head;
    __asm__ volatile("" : : : "memory");
    available->index++;
    set_reg(QUEUE_NOTIFY, queue);
}

/* Waits for the device to use `count` chains in all; says whether it did. */
static int is_used(u32 queue, u16 count, u32 ticks)
{
    u32 began = clock_now();
    while (queues[queue].used.index != count) {
        if (reg(STATUS) & NEEDS_RESET)
            panic("a device refuses a right request");
        if (is_past(began, ticks))
            return 0;
    }
    return 1;
}

static u32 used_bytes(u32 queue, u16 place) { return queues[queue].used.ring[place % RING_MAX].bytes; }

/* ---- disks ---- */

static u8 block(u32 kind, u64 sector, u32 bytes)
{
    int is_in = kind == BLOCK_IN || kind == BLOCK_ID_TEXT;
    request.kind = kind;
    request.sector = sector;
    request.status = 0xee;
    describe(0, 0, &request, 16, NEXT);
    describe(0, 1, buffers[0], bytes, is_in ? NEXT | WRITE : NEXT);
    describe(0, 2, &request.status, 1, WRITE);
    /* A flush has no data. */
    if (bytes == 0)
        queues[0].descriptors[0].next = 2;
    u16 count = queues[0].available.index + 1;
    offer(0, 0);
    if (!is_used(0, count, 120 * SECOND))
        panic("a disk does not answer");
    return request.status;
}

static u8 pattern(u64 at, u64 salt) { return (u8)(at * 13 + salt); }

static int has_pattern(u64 salt)
{
    u64 wrong = 0;
    for (u64 at = 0; at < SECTOR_BYTES; at++)
        wrong += buffers[0][at] != pattern(at, salt);
    return wrong == 0;
}

static void fill(u64 salt)
{
    for (u64 at = 0; at < SECTOR_BYTES; at++)
        buffers[0][at] = pattern(at, salt);
}

static void block_write_prove(u64 sector)
{
    u64 salt = random_bits(0);
    fill(salt);
    if (block(BLOCK_OUT, sector, SECTOR_BYTES) != BLOCK_OK || block(BLOCK_FLUSH, 0, 0) != BLOCK_OK)
        panic("a disk does not write");
    fill(~salt);
    if (block(BLOCK_IN, sector, SECTOR_BYTES) != BLOCK_OK || !has_pattern(salt))
        panic("a disk does not read what was written");
}

/* A disk that cannot be written has a pattern of salt 0 in its first sector. */
static void block_prove(void)
{
    int is_read_only = (offered_features() & BLOCK_READ_ONLY) != 0;
    begin(0);
    u64 sectors = reg(CONFIG) | (u64)reg(CONFIG + 4) << 32;
    if (is_read_only) {
        if (block(BLOCK_OUT, 0, SECTOR_BYTES) != BLOCK_ERROR)
            panic("a disk that cannot be written is written");
        if (block(BLOCK_IN, 0, SECTOR_BYTES) != BLOCK_OK || !has_pattern(0))
            panic("a disk that cannot be written has changed");
    } else {
        block_write_prove(0);
        block_write_prove(sectors - 1);
    }
    if (block(BLOCK_IN, sectors, SECTOR_BYTES) != BLOCK_ERROR || block(BLOCK_IN, 1ul << 55, SECTOR_BYTES) != BLOCK_ERROR)
        panic("a disk reads beyond its end");
    if (block(BLOCK_OUT, ~0ul, SECTOR_BYTES) != BLOCK_ERROR || block(BLOCK_IN, 0, SECTOR_BYTES - 1) != BLOCK_ERROR)
        panic("a disk takes a request that it cannot serve");
    if (block(0x77, 0, SECTOR_BYTES) != BLOCK_UNSUPPORTED)
        panic("a disk serves what it does not know");
    if (block(BLOCK_ID_TEXT, 0, 20) != BLOCK_OK || buffers[0][0] != 's')
        panic("a disk does not say who it is");
}

/* ---- network ---- */

/* Asks who has 10.77.0.1, as 10.77.0.2. */
static void write_question(volatile u8 *frame)
{
    static const u8 rest[] = {0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1};
    static const u8 ours[] = {10, 77, 0, 2}, theirs[] = {10, 77, 0, 1};
    for (u32 at = 0; at < NET_HEADER_BYTES + ARP_BYTES; at++)
        frame[at] = 0;
    frame += NET_HEADER_BYTES;
    for (u32 at = 0; at < 6; at++) {
        frame[at] = 0xff;
        frame[6 + at] = frame[22 + at] = (u8)load_any(VIRTIO + orders.window * WINDOW_BYTES + CONFIG + at, 1);
    }
    for (u32 at = 0; at < sizeof(rest); at++)
        frame[12 + at] = rest[at];
    for (u32 at = 0; at < 4; at++) {
        frame[28 + at] = ours[at];
        frame[38 + at] = theirs[at];
    }
}

static int is_answer(const volatile u8 *frame)
{
    frame += NET_HEADER_BYTES;
    return frame[12] == 0x08 && frame[13] == 0x06 && frame[21] == 2 && frame[28] == 10 && frame[29] == 77 && frame[31] == 1;
}

/* Looks at what has come, and offers the buffers again. */
static int has_answer(u16 *seen)
{
    int found = 0;
    while (queues[RECEIVE].used.index != *seen) {
        u32 head = queues[RECEIVE].used.ring[(*seen)++ % RING_MAX].head;
        found |= is_answer(buffers[head]);
        offer(RECEIVE, (u16)head);
    }
    return found;
}

static void net_prove(void)
{
    enum { TRIES = 60 };
    u16 seen = 0;
    begin(0);
    for (u16 slot = 0; slot < BUFFERS; slot++) {
        describe(RECEIVE, slot, buffers[slot], BUFFER_BYTES, WRITE);
        offer(RECEIVE, slot);
    }
    write_question(buffers[BUFFERS]);
    describe(TRANSMIT, 0, buffers[BUFFERS], NET_HEADER_BYTES + ARP_BYTES, 0);
    for (u16 tries = 1; tries <= TRIES; tries++) {
        offer(TRANSMIT, 0);
        if (!is_used(TRANSMIT, tries, 30 * SECOND))
            panic("a card does not send");
        if (!orders.client_answers)
            return;
        u32 asked = clock_now();
        while (!is_past(asked, SECOND))
            if (has_answer(&seen))
                return;
    }
    panic("nobody answers on the network");
}

/* ---- console, entropy ---- */

static void console_prove(void)
{
    static const char text[] = "\nhostile: the console speaks\n";
    begin(0);
    describe(TRANSMIT, 0, text, sizeof(text) - 1, 0);
    offer(TRANSMIT, 0);
    if (!is_used(TRANSMIT, 1, 30 * SECOND))
        panic("the console does not send");
}

static void entropy_prove(void)
{
    enum { BYTES = 64 };
    u32 bits = 0;
    begin(0);
    for (u32 at = 0; at < BYTES; at++)
        buffers[0][at] = 0;
    describe(0, 0, buffers[0], BYTES, WRITE);
    offer(0, 0);
    if (!is_used(0, 1, 60 * SECOND) || used_bytes(0, 0) != BYTES)
        panic("the entropy device does not answer");
    for (u32 at = 0; at < BYTES; at++)
        bits |= buffers[0][at];
    if (!bits)
        panic("random bytes are all zero");
}

void device_prove(void)
{
    switch (device_id(orders.window)) {
    case BLOCK_ID:
        block_prove();
        break;
    case NET_ID:
        net_prove();
        break;
    case CONSOLE_ID:
        console_prove();
        break;
    case ENTROPY_ID:
        entropy_prove();
        break;
    default:
        return;
    }
    set_reg(STATUS, 0);
    if (reg(STATUS))
        panic("a device is not reset");
}
