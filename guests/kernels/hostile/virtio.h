/* Virtio devices: registers, and rings as they should be. */

#ifndef VIRTIO_H
#define VIRTIO_H

#include "hostile.h"

enum { MAGIC_VALUE = 0, DEVICE_ID = 8, DEVICE_FEATURES = 0x10, DEVICE_FEATURES_SEL = 0x14, DRIVER_FEATURES = 0x20 };
enum { DRIVER_FEATURES_SEL = 0x24, QUEUE_SEL = 0x30, QUEUE_NUM_MAX = 0x34, QUEUE_NUM = 0x38, QUEUE_READY = 0x44 };
enum { QUEUE_NOTIFY = 0x50, INTERRUPT_STATUS = 0x60, INTERRUPT_ACK = 0x64, STATUS = 0x70, QUEUE_DESC = 0x80 };
enum { QUEUE_DRIVER = 0x90, QUEUE_DEVICE = 0xa0, CONFIG = 0x100 };
enum { ACKNOWLEDGE = 1, DRIVER = 2, DRIVER_OK = 4, FEATURES_OK = 8, NEEDS_RESET = 0x40, FAILED = 0x80 };
enum { NEXT = 1, WRITE = 2, INDIRECT = 4, RING_MAX = 256 };

#define VERSION_1 (1ul << 32)

struct descriptor {
    u64 address;
    u32 bytes;
    u16 flags, next;
};
struct available {
    u16 flags, index, ring[RING_MAX + 1];
};
struct used {
    u16 flags, index;
    struct {
        u32 head, bytes;
    } ring[RING_MAX];
};

/* Where a queue's rings are. */
struct queue {
    u64 descriptors, available, used;
    u32 size;
};

u32 reg(u32 offset);
void set_reg(u32 offset, u32 value);
u64 offered_features(void);
/* Reset, and on to where the device has taken these features, or has not. */
int begin_device(u64 features);
/* Whether the queue is ready then. */
int set_queue(u32 index, const struct queue *queue);
u32 queue_count(void);

#endif
