// A table of counted keys in stripes, each with a lock, chains and entries of its own. Every vCPU puts keys, looks keys up,
// and takes away what it put a while ago, so entries come and go all the time. Puts and takings of a key may be done in any
// order, so what is left in the end is the same for any vCPU count: the keys of the first items, which nobody takes.
#include "guest.h"

enum { N, KEYS, STRIPES, WORK };
struct param program_params[] = {
    NUMBER("n", 100000, 1, 1ul << 40),
    NUMBER("keys", 4096, 4, 1ul << 24),
    NUMBER("stripes", 64, 1, 4096),
    NUMBER("work", 16, 0, 1ul << 20), // rounds of computing that an item's key takes
    PARAMS_END,
};

#define WINDOW (PAGE / sizeof(u64)) // most items that a vCPU has in the table and will take again
#define NOTHING 0ul

struct entry {
    u64 key, count;
    u64 sum; // count times a number that follows from the key
    u64 next; // index + 1
};

struct stripe {
    struct spin_lock lock;
    u64 entries, free, buckets;
    struct entry *pool;
    u64 heads[];
};

static struct stripe **stripes;
static u64 kept;
static u64 windows[MAX_VCPUS][WINDOW] OWN_PAGE;
static struct partial partials[MAX_VCPUS];

static u64 stripe_of(u64 key) { return key % param(STRIPES); }

// A stripe has room for all keys that belong there, and as many chains as a stripe has keys on average.
static struct stripe *new_stripe(struct vcpu *cpu, u64 entries, u64 buckets) {
    u64 head_bytes = sizeof(struct stripe) + buckets * sizeof(u64);
    struct stripe *s = alloc(cpu, head_bytes + entries * sizeof(struct entry));
    memset(s, 0, head_bytes);
    s->entries = entries;
    s->buckets = buckets;
    s->pool = (struct entry *)((u8 *)s + head_bytes);
    for (u64 i = 0; i < entries; i++) s->pool[i].next = i;
    s->free = entries;
    return s;
}

void program_setup(struct vcpu *cpu) {
    u64 count = param(STRIPES), *entries = alloc(cpu, count * sizeof *entries);
    memset(entries, 0, count * sizeof *entries);
    for (u64 i = 0; i < param(KEYS); i++) entries[stripe_of(mix(i))]++;
    stripes = alloc(cpu, count * sizeof *stripes);
    for (u64 i = 0; i < count; i++) stripes[i] = new_stripe(cpu, entries[i], param(KEYS) / count + 1);
    kept = param(N) < param(KEYS) / 4 ? param(N) : param(KEYS) / 4;
}

static u64 key_of(u64 item) {
    u64 index = mix(item);
    for (u64 i = 0; i < param(WORK); i++) index = mix(index);
    return mix(index % param(KEYS));
}

// Where the number of the key's entry is, or NOTHING at the end of its chain. The caller has the lock.
static u64 *find(struct stripe *s, u64 key) {
    u64 *at = &s->heads[(key >> 32) % s->buckets];
    while (*at != NOTHING && s->pool[*at - 1].key != key) at = &s->pool[*at - 1].next;
    return at;
}

static void insert(struct vcpu *cpu, struct stripe *s, u64 *end, u64 key) {
    u64 number = s->free;
    if (number == NOTHING) fail(cpu, WRONG, "a stripe has more keys than there are");
    struct entry *entry = &s->pool[number - 1];
    s->free = entry->next;
    *entry = (struct entry){key, 0, 0, NOTHING};
    *end = number;
}

static void put(struct vcpu *cpu, u64 key) {
    struct stripe *s = stripes[stripe_of(key)];
    spin_lock(&s->lock);
    u64 *at = find(s, key);
    if (*at == NOTHING) insert(cpu, s, at, key);
    struct entry *entry = &s->pool[*at - 1];
    entry->count++;
    entry->sum += mix(key);
    spin_unlock(&s->lock);
}

// How many of the key there are.
static u64 look_up(struct vcpu *cpu, u64 key) {
    struct stripe *s = stripes[stripe_of(key)];
    spin_lock(&s->lock);
    u64 number = *find(s, key), count = 0;
    if (number != NOTHING) {
        const struct entry *entry = &s->pool[number - 1];
        count = entry->count;
        if (entry->sum != count * mix(key)) fail(cpu, WRONG, "key %lx is there %lu times, its sum is wrong", key, count);
    }
    spin_unlock(&s->lock);
    return count;
}

static void take(struct vcpu *cpu, u64 key) {
    struct stripe *s = stripes[stripe_of(key)];
    spin_lock(&s->lock);
    u64 *at = find(s, key), number = *at;
    if (number == NOTHING) fail(cpu, WRONG, "key %lx is lost", key);
    struct entry *entry = &s->pool[number - 1];
    entry->count--;
    entry->sum -= mix(key);
    if (entry->count == 0) {
        *at = entry->next;
        entry->next = s->free;
        s->free = number;
    }
    spin_unlock(&s->lock);
}

static void work(struct vcpu *cpu, struct range mine) {
    u64 *window = windows[cpu->index], first = mine.from > kept ? mine.from : kept, step = (mine.to - mine.from) / 16 + 1;
    for (u64 item = mine.from; item < mine.to; item++) {
        u64 key = key_of(item), *slot = &window[item % WINDOW];
        put(cpu, key);
        look_up(cpu, mix(mix(~item) % param(KEYS)));
        if (look_up(cpu, key) == 0) fail(cpu, WRONG, "key %lx is not found", key);
        if (item >= first + WINDOW) take(cpu, *slot);
        if (item >= first) *slot = key;
        if (cpu->index == 0 && (item + 1) % step == 0) device_write(MARK, item + 1);
    }
    u64 last = mine.to > first + WINDOW ? mine.to - WINDOW : first;
    for (u64 item = last; item < mine.to; item++) take(cpu, window[item % WINDOW]);
}

// Checksum and count of what is left in this vCPU's share of the stripes.
static void sum_up(struct partial *result, struct range mine) {
    u64 sum = 0, count = 0;
    for (u64 i = mine.from; i < mine.to; i++)
        for (u64 bucket = 0; bucket < stripes[i]->buckets; bucket++)
            for (u64 number = stripes[i]->heads[bucket]; number != NOTHING; number = stripes[i]->pool[number - 1].next) {
                const struct entry *entry = &stripes[i]->pool[number - 1];
                sum += checksum_part(entry->count, entry->key);
                count++;
            }
    result->value = sum;
    result->other = count;
}

static void check_empty(struct vcpu *cpu, u64 index) {
    const struct stripe *s = stripes[index];
    u64 used = 0, free = 0;
    for (u64 bucket = 0; bucket < s->buckets; bucket++) used += s->heads[bucket] != NOTHING;
    for (u64 number = s->free; number != NOTHING && free <= s->entries; number = s->pool[number - 1].next) free++;
    if (used != 0 || free != s->entries) fail(cpu, WRONG, "stripe %lu is not empty when all is taken", index);
}

void program_run(struct vcpu *cpu) {
    struct range left = share_of(cpu, kept), mine = share_of(cpu, param(STRIPES));
    work(cpu, share_of(cpu, param(N)));
    barrier(cpu);
    sum_up(&partials[cpu->index], mine);
    barrier(cpu);
    for (u64 item = left.from; item < left.to; item++) take(cpu, key_of(item));
    barrier(cpu);
    for (u64 i = mine.from; i < mine.to; i++) check_empty(cpu, i);
    barrier(cpu);
    if (cpu->index != 0) return;
    u64 sum = 0, count = 0;
    for (u64 i = 0; i < cpu->count; i++) sum += partials[i].value, count += partials[i].other;
    say(cpu, "hashtable %lu keys %lu checksum %016lx\n", param(N), count, sum);
}
