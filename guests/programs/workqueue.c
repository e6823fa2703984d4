// Producers and consumers: half of the vCPUs scramble blocks of data and put them into a bounded queue, the others take them
// out, unscramble them and check what they find. One vCPU alone does both in turn.
#include "guest.h"

enum { N, SLOTS, WORK };
struct param program_params[] = {
    NUMBER("n", 2000, 1, 1ul << 40), // blocks that go through the queue
    NUMBER("slots", 16, 1, 1024), // pages they go in
    NUMBER("work", 4, 1, 1ul << 20), // rounds of scrambling
    PARAMS_END,
};

#define MOST_SLOTS 1024
#define WORDS (PAGE / sizeof(u64) - 2)
#define FACTOR 6364136223846793005ul
#define INVERSE 13877824140714322085ul // FACTOR * INVERSE is 1 modulo 2^64
#define NONE (~0ul)

struct block {
    u64 item, producer;
    u64 words[WORDS];
} OWN_PAGE;

// Numbers of blocks, first in first out. All blocks fit, so only taking one may have to wait.
struct queue {
    struct spin_lock lock;
    u64 taken, put;
    u32 blocks[MOST_SLOTS];
} OWN_PAGE;

static struct block *blocks;
static struct queue empty, full;
static struct {
    u64 next[MAX_VCPUS]; // the least item of each producer that may come next
} OWN_PAGE consumers[MAX_VCPUS];
static struct partial partials[MAX_VCPUS];

static void put(struct queue *queue, u64 block) {
    spin_lock(&queue->lock);
    queue->blocks[queue->put % MOST_SLOTS] = (u32)block;
    store(&queue->put, queue->put + 1);
    spin_unlock(&queue->lock);
}

// A block, as soon as there is one; NONE when all that ever come have been taken.
static u64 take(struct queue *queue) {
    for (;;) {
        spin_lock(&queue->lock);
        u64 taken = queue->taken, block = NONE;
        bool is_there = taken != queue->put;
        if (is_there) {
            block = queue->blocks[taken % MOST_SLOTS];
            queue->taken = taken + 1;
        }
        spin_unlock(&queue->lock);
        if (is_there || taken == param(N)) return block;
        WAIT_UNTIL(load(&queue->put) != taken);
    }
}

void program_setup(struct vcpu *cpu) {
    blocks = alloc(cpu, param(SLOTS) * sizeof *blocks);
    for (u64 i = 0; i < param(SLOTS); i++) put(&empty, i);
}

static u64 word_of(u64 item, u64 i) { return mix(item * WORDS + i); }

static u64 turned(u64 word) { return (word << 13) | (word >> 51); }

static void scramble(u64 *words) {
    u64 before = words[WORDS - 1];
    for (u64 i = 0; i < WORDS; i++) before = words[i] = (words[i] ^ turned(before)) * FACTOR;
}

static void unscramble(u64 *words) {
    for (u64 i = WORDS - 1; i > 0; i--) words[i] = (words[i] * INVERSE) ^ turned(words[i - 1]);
    words[0] = (words[0] * INVERSE) ^ turned(words[WORDS - 1]);
}

static void produce(struct vcpu *cpu, u64 item) {
    u64 number = take(&empty);
    if (number >= param(SLOTS)) fail(cpu, WRONG, "there is no block for item %lu", item);
    struct block *block = &blocks[number];
    block->item = item;
    block->producer = cpu->index;
    for (u64 i = 0; i < WORDS; i++) block->words[i] = word_of(item, i);
    for (u64 round = 0; round < param(WORK); round++) scramble(block->words);
    put(&full, number);
}

// The items of a producer come in their order.
static void check_order(struct vcpu *cpu, const struct block *block) {
    if (block->item >= param(N) || block->producer >= cpu->count) fail(cpu, WRONG, "a block is no item");
    u64 *next = &consumers[cpu->index].next[block->producer];
    if (block->item < *next) fail(cpu, WRONG, "item %lu comes after item %lu", block->item, *next - 1);
    *next = block->item + 1;
}

// Takes out an item, if another comes. What it adds to the checksum is that of the scrambled block.
static bool consume(struct vcpu *cpu) {
    struct partial *result = &partials[cpu->index];
    u64 number = take(&full), sum = 0;
    if (number == NONE) return false;
    struct block *block = &blocks[number];
    check_order(cpu, block);
    for (u64 i = 0; i < WORDS; i++) sum += checksum_part(block->words[i], i);
    for (u64 round = 0; round < param(WORK); round++) unscramble(block->words);
    for (u64 i = 0; i < WORDS; i++)
        if (block->words[i] != word_of(block->item, i)) fail(cpu, WRONG, "word %lu of item %lu is wrong", i, block->item);
    result->value += checksum_part(sum, block->item);
    result->other += mix(block->item);
    put(&empty, number);
    return true;
}

static void do_all(struct vcpu *cpu) {
    u64 producers = cpu->count / 2, step = param(N) / 16 + 1;
    if (cpu->index >= producers && cpu->count > 1) {
        while (consume(cpu)) {}
        return;
    }
    for (u64 item = cpu->index; item < param(N); item += producers > 0 ? producers : 1) {
        produce(cpu, item);
        if (cpu->count == 1) consume(cpu);
        if (cpu->index == 0 && item % step == 0) device_write(MARK, item);
    }
}

void program_run(struct vcpu *cpu) {
    do_all(cpu);
    barrier(cpu);
    if (cpu->index != 0) return;
    u64 sum = 0, items = 0;
    for (u64 i = 0; i < cpu->count; i++) {
        sum += partials[i].value;
        items += partials[i].other;
    }
    for (u64 i = 0; i < param(N); i++) items -= mix(i);
    if (items != 0) fail(cpu, WRONG, "items are lost, or came twice");
    say(cpu, "workqueue %lu checksum %016lx\n", param(N), sum);
}
