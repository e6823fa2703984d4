// What the parts of the runtime need of each other.
#ifndef SAMSARA_INTERNAL_H
#define SAMSARA_INTERNAL_H

#include "guest.h"

void guest_start(u64 index, u64 count, const char *params, u64 memory);
void alloc_begin(u64 memory);
// The memory that programs may use: a region below 3 GiB and one from 4 GiB.
void usable_memory(u64 memory, struct span regions[2]);
u64 spin_limit(void);

#endif
