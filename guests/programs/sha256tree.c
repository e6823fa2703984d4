// The SHA-256 tree of the input: leaves of 64 KiB, leaf = H(0x00 || data), parent = H(0x01 || left || right), an odd
// node goes up unchanged; an empty input is one empty leaf. vCPUs claim runs of leaves from a queue.
//
// Input that fits in memory is read whole and can be hashed several times; larger input passes through memory in
// rounds. Either way a round's subtrees are merged in order into a stack of complete trees, so any length works.
#include "sha256.h"

enum { PASSES, CLAIM };
struct param program_params[] = {
    NUMBER("passes", 1, 1, 1ul << 24),
    NUMBER("claim", 16, 1, 16), // leaves a vCPU takes at a time; rounded down to a power of two
    PARAMS_END,
};

#define LEAF 65536ul
#define SLOT MIB // of input, one INPUT; a claim never spans two
#define LEAVES_IN_SLOT (SLOT / LEAF)
#define STEPS 64 // of MARK, in a run

// A complete subtree of 2^height leaves, or at the input's end one that is not complete.
struct node {
    struct digest digest;
    u64 height;
};

// Subtrees of the current round, as one vCPU made them: on its own pages, so that noting one conflicts with nobody.
struct claim {
    u64 number;
    struct digest digest;
};

static struct {
    u64 claimed_and_done; // claims handed out in the low half, leaves done in the high half
} OWN_PAGE queue;

static struct {
    struct spin_lock lock;
    u64 printed; // sixteenths of the run
    u64 marked;
} OWN_PAGE progress;

// Written between rounds by vCPU 0 only.
static struct {
    u64 claim_leaves;
    struct span rest[2];
    u64 slots;
    struct claim *claims; // claims_each of them for each vCPU
    u64 claims_each;
    u64 bytes;        // of this round
    u64 total_bytes;  // of all rounds
    u64 leaves_before; // in earlier rounds and passes
    u64 leaves_of_run; // in all passes, or of one round when the whole is not known
    bool whole;
    bool ended;
    bool again;
    struct node stack[64];
    u64 stack_depth;
    struct digest root;
} OWN_PAGE tree;

static struct claims_made {
    u64 count;
} OWN_PAGE made[MAX_VCPUS];

static struct digest parent_of(const struct digest *left, const struct digest *right) {
    u8 both[2 * DIGEST_BYTES];
    memcpy(both, left->bytes, DIGEST_BYTES);
    memcpy(both + DIGEST_BYTES, right->bytes, DIGEST_BYTES);
    return sha256_prefixed(1, both, sizeof both);
}

static u8 *slot_address(u64 slot) {
    u64 low = tree.rest[0].bytes / SLOT;
    return (u8 *)(slot < low ? tree.rest[0].start + slot * SLOT : tree.rest[1].start + (slot - low) * SLOT);
}

void program_setup(struct vcpu *cpu) {
    tree.claim_leaves = 1;
    while (tree.claim_leaves * 2 <= param(CLAIM)) tree.claim_leaves *= 2;
    // The claims of a round are at most as many as fit; room for all of them on every vCPU, that is how it may fall.
    u64 slots_possible = memory_bytes / SLOT;
    tree.claims_each = slots_possible * LEAVES_IN_SLOT / tree.claim_leaves;
    u64 each_bytes = (tree.claims_each * sizeof(struct claim) + PAGE - 1) & ~(PAGE - 1);
    tree.claims_each = each_bytes / sizeof(struct claim);
    tree.claims = alloc(cpu, cpu->count * each_bytes);
    alloc_rest(tree.rest);
    tree.slots = tree.rest[0].bytes / SLOT + tree.rest[1].bytes / SLOT;
    if (tree.slots == 0) fail(cpu, BAD_PARAMS, "no MiB of memory left for the input: raise vm.memory");
}

static struct claim *claims_of(u64 vcpu) {
    u64 each_bytes = (tree.claims_each * sizeof(struct claim) + PAGE - 1) & ~(PAGE - 1);
    return (struct claim *)((u8 *)tree.claims + vcpu * each_bytes);
}

// Fills memory with input. Called by vCPU 0 while the others wait.
static void read_round(struct vcpu *cpu) {
    tree.bytes = 0;
    for (u64 slot = 0; slot < tree.slots && !tree.ended; slot++) {
        u64 filled = 0;
        while (filled < SLOT && !tree.ended) {
            u64 got = input_read(cpu, slot_address(slot) + filled, SLOT - filled);
            tree.ended = got == 0;
            filled += got;
        }
        tree.bytes += filled;
    }
    tree.total_bytes += tree.bytes;
}

static u64 leaves_in(u64 bytes) { return (bytes + LEAF - 1) / LEAF; }

static struct digest hash_leaf(u64 leaf) {
    u64 at = leaf * LEAF, bytes = tree.bytes - at < LEAF ? tree.bytes - at : LEAF;
    return sha256_prefixed(0, slot_address(at / SLOT) + at % SLOT, bytes);
}

// The subtree over `count` leaves from `first`, at most 16; levels are paired in place.
static struct digest hash_subtree(u64 first, u64 count) {
    struct digest level[LEAVES_IN_SLOT];
    for (u64 i = 0; i < count; i++) level[i] = hash_leaf(first + i);
    while (count > 1) {
        for (u64 i = 0; i + 1 < count; i += 2) level[i / 2] = parent_of(&level[i], &level[i + 1]);
        if (count % 2) level[count / 2] = level[count - 1];
        count = (count + 1) / 2;
    }
    return level[0];
}

// Says what is due, in order: whoever finds a step crossed says it, under the lock. `done` leaves of all passes.
static void report_progress(struct vcpu *cpu, u64 done) {
    spin_lock(&progress.lock);
    while (tree.whole && progress.printed < 16 && done * 16 >= tree.leaves_of_run * (progress.printed + 1))
        say(cpu, "progress %lu/16\n", ++progress.printed);
    if (done > progress.marked) device_write(MARK, done);
    if (done > progress.marked) progress.marked = done;
    spin_unlock(&progress.lock);
    publish();
}

// Works on the round until every leaf has been claimed.
static void hash_round(struct vcpu *cpu) {
    u64 leaves = leaves_in(tree.bytes), claims = (leaves + tree.claim_leaves - 1) / tree.claim_leaves;
    u64 finished = 0, noted = 0;
    struct claim *mine = claims_of(cpu->index);
    made[cpu->index].count = 0;
    if (leaves == 0) return;
    for (;;) {
        // The claim is a chunk of its own: what was hashed before and what comes after is not lost if it conflicts.
        publish();
        u64 before = fetch_add(&queue.claimed_and_done, 1 + (finished << 32));
        publish();
        u64 done_before = tree.leaves_before + (before >> 32), done = done_before + finished;
        if (done * STEPS / tree.leaves_of_run != done_before * STEPS / tree.leaves_of_run) report_progress(cpu, done);
        u64 number = before & 0xFFFFFFFF;
        if (number >= claims) break;
        u64 first = number * tree.claim_leaves, left = leaves - first;
        finished = left < tree.claim_leaves ? left : tree.claim_leaves;
        mine[noted++] = (struct claim){number, hash_subtree(first, finished)};
    }
    made[cpu->index].count = noted;
}

// Puts the next subtree on the stack; equal heights make a parent. Only the input's last one may be incomplete.
static void push(struct digest digest, u64 height) {
    struct node node = {digest, height};
    while (tree.stack_depth > 0 && tree.stack[tree.stack_depth - 1].height == node.height) {
        node.digest = parent_of(&tree.stack[--tree.stack_depth].digest, &node.digest);
        node.height++;
    }
    tree.stack[tree.stack_depth++] = node;
}

static bool is_next(u64 vcpu, u64 head, u64 number) {
    return head < made[vcpu].count && claims_of(vcpu)[head].number == number;
}

// Merges the round's claims in order. Each vCPU's claims rise, so the next one is at the head of one of the lists.
static void merge_round(struct vcpu *cpu) {
    u64 leaves = leaves_in(tree.bytes), claims = (leaves + tree.claim_leaves - 1) / tree.claim_leaves;
    u64 heads[MAX_VCPUS] = {0};
    for (u64 number = 0; number < claims; number++) {
        u64 vcpu = 0;
        while (vcpu < cpu->count && !is_next(vcpu, heads[vcpu], number)) vcpu++;
        if (vcpu == cpu->count) fail(cpu, WRONG, "leaves from %lu were hashed by nobody", number * tree.claim_leaves);
        push(claims_of(vcpu)[heads[vcpu]++].digest, (u64)__builtin_ctzl(tree.claim_leaves));
    }
}

// An odd node goes up unchanged until it meets a left sibling: the stack folds from the right.
static struct digest fold(void) {
    if (tree.stack_depth == 0) return sha256_prefixed(0, (const u8 *)"", 0);
    struct digest root = tree.stack[tree.stack_depth - 1].digest;
    for (u64 i = tree.stack_depth - 1; i > 0; i--) root = parent_of(&tree.stack[i - 1].digest, &root);
    tree.stack_depth = 0;
    return root;
}

static void say_root(struct vcpu *cpu) {
    say(cpu, "root ");
    for (u64 i = 0; i < DIGEST_BYTES; i++) say(cpu, "%02lx", (u64)tree.root.bytes[i]);
    say(cpu, " bytes %lu\n", tree.total_bytes);
}

// After a round, on vCPU 0: merges it and decides whether there is another.
static void end_round(struct vcpu *cpu, u64 pass) {
    merge_round(cpu);
    tree.leaves_before += leaves_in(tree.bytes);
    queue.claimed_and_done = 0;
    if (!tree.whole) {
        say(cpu, "progress %lu bytes\n", tree.total_bytes);
        tree.bytes = 0;
        if (!tree.ended) read_round(cpu);
        tree.again = tree.bytes > 0;
        if (tree.again) return;
    }
    struct digest root = fold();
    bool differs = memcmp(&root, &tree.root, DIGEST_BYTES) != 0;
    if (tree.whole && pass > 0 && differs) fail(cpu, WRONG, "pass %lu gave another root", pass);
    tree.root = root;
    tree.again = tree.whole && pass + 1 < param(PASSES);
    if (!tree.again) say_root(cpu);
}

static void begin_run(struct vcpu *cpu) {
    read_round(cpu);
    tree.whole = tree.ended;
    if (!tree.whole && param(PASSES) > 1)
        fail(cpu, BAD_PARAMS, "passes=%lu needs the whole input in memory: raise vm.memory", param(PASSES));
    tree.leaves_of_run = leaves_in(tree.bytes) * param(PASSES);
}

void program_run(struct vcpu *cpu) {
    if (cpu->index == 0) begin_run(cpu);
    for (u64 pass = 0;; pass++) {
        barrier(cpu);
        hash_round(cpu);
        barrier(cpu);
        if (cpu->index == 0) end_round(cpu, pass);
        barrier(cpu);
        if (!tree.again) return;
    }
}
