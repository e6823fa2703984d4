// Numbers that depend on every number before them.
#include "work.h"

u64 mix(u64 value, u64 steps) {
    for (u64 i = 0; i < steps; i++) {
        value ^= value << 13;
        value ^= value >> 7;
        value ^= value << 17;
    }
    return value;
}

u64 fold(u64 sum, u64 value) { return mix(sum * 0x100000001b3u + value, 1); }

void lane_start(u64 lane[LANE_WORDS], u64 index) {
    for (u64 i = 0; i < LANE_WORDS; i++) lane[i] = mix(index * LANE_WORDS + i + 1, 8);
}

void lane_next(u64 to[LANE_WORDS], const u64 own[LANE_WORDS], const u64 other[LANE_WORDS], u64 steps) {
    for (u64 i = 0; i < LANE_WORDS; i++) to[i] = mix(own[i] + other[LANE_WORDS - 1 - i], steps);
}
