/* Virtio devices: registers, and garbage for all of a device's window. */

#include "virtio.h"

static u64 window(void) { return VIRTIO + orders.window * WINDOW_BYTES; }

u32 reg(u32 offset) { return load32(window() + offset); }
void set_reg(u32 offset, u32 value) { store32(window() + offset, value); }

u32 device_id(u64 index)
{
    u64 base = VIRTIO + index * WINDOW_BYTES;
    return load32(base + MAGIC_VALUE) == 0x74726976 ? load32(base + DEVICE_ID) : 0;
}

u32 queue_count(void)
{
    u32 id = reg(DEVICE_ID);
    return id == NET_ID || id == CONSOLE_ID ? 2 : 1;
}

u64 offered_features(void)
{
    set_reg(DEVICE_FEATURES_SEL, 0);
    u64 low = reg(DEVICE_FEATURES);
    set_reg(DEVICE_FEATURES_SEL, 1);
    return low | (u64)reg(DEVICE_FEATURES) << 32;
}

int begin_device(u64 features)
{
    set_reg(STATUS, 0);
    set_reg(STATUS, ACKNOWLEDGE);
    set_reg(STATUS, ACKNOWLEDGE | DRIVER);
    set_reg(DRIVER_FEATURES_SEL, 0);
    set_reg(DRIVER_FEATURES, (u32)features);
    set_reg(DRIVER_FEATURES_SEL, 1);
    set_reg(DRIVER_FEATURES, (u32)(features >> 32));
    set_reg(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
    return (reg(STATUS) & FEATURES_OK) != 0;
}

static void set_address(u32 offset, u64 address)
{
    set_reg(offset, (u32)address);
    set_reg(offset + 4, (u32)(address >> 32));
}

int set_queue(u32 index, const struct queue *queue)
{
    set_reg(QUEUE_SEL, index);
    set_reg(QUEUE_NUM, queue->size);
    set_address(QUEUE_DESC, queue->descriptors);
    set_address(QUEUE_DRIVER, queue->available);
    set_address(QUEUE_DEVICE, queue->used);
    set_reg(QUEUE_READY, 1);
    return reg(QUEUE_READY) == 1;
}

/* Rings of the device's are in the arena or nowhere: it writes them, and must not write this kernel. */
static u64 window_value(int cpu, u64 offset)
{
    u64 garbage = random_bits(cpu);
    if (offset >= QUEUE_DESC - 7 && offset < QUEUE_DEVICE + 8) {
        int is_high = offset % 8 == 4;
        return is_high ? garbage & 1 : orders.arena + (garbage & (ARENA_BYTES - 1));
    }
    return one_in(cpu, 2) ? garbage & 0xf : garbage;
}

void window_step(int cpu)
{
    static const u16 registers[] = {DEVICE_FEATURES_SEL, DRIVER_FEATURES_SEL, DRIVER_FEATURES, QUEUE_SEL, QUEUE_NUM, QUEUE_READY, QUEUE_NOTIFY, INTERRUPT_ACK, STATUS, STATUS, QUEUE_DESC, QUEUE_DRIVER, QUEUE_DEVICE};
    int size = one_in(cpu, 2) ? 4 : 1 << below(cpu, 4);
    u64 offset = registers[below(cpu, sizeof(registers) / sizeof(*registers))];
    if (one_in(cpu, 2))
        offset = below(cpu, one_in(cpu, 2) ? 0x180 : WINDOW_BYTES - (u64)size);
    vcpus[cpu].accesses++;
    if (one_in(cpu, 3))
        load_any(window() + offset, size);
    else
        store_any(window() + offset, size, window_value(cpu, offset));
}
