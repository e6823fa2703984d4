/* A kernel for two vCPUs of a PC whose page tables change all the time, and that checks what its code at CPL 3 then
   sees. Command line: "ROUNDS SEED".

   Window pages are mapped through last entries ("near" slots) and through directory entries ("far" slots). In every
   round each slot shows another frame, and is writable, or read-only, or not there at all. vCPU 0 changes the shared
   slots, flushes its own translations, and tells vCPU 1 by an interrupt to flush its own. vCPU 1 goes on looking all
   the time. Once it has flushed, nothing of the round before may show. The private slots are vCPU 0's alone. A frame
   that was written through an entry must have left that entry dirty.

   The tables are changed at CPL 0 and everything is looked at from CPL 3. UD2 is the system call. */

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;

enum {
    FRAMES = 8,
    NEAR_SLOTS = 4,
    SLOTS = 7,
    SHARED_NEAR = 3, /* near slots 0 to 2 */
    SHARED_FAR = 6,  /* far slots 4 and 5; the others are private: 3 and 6 */
    WORDS = 512,
    GDT_ENTRIES = 12,
    SHOOTDOWN_VECTOR = 64,
    TRAMPOLINE = 0x8000,
    PRIVATE_TURNS = 3,
};

enum { PRESENT = 1, WRITABLE = 2, USER = 4, ACCESSED = 0x20, DIRTY = 0x40, LARGE = 0x80 };
enum { CALL_PRIVATE, CALL_SHARED, CALL_SHOOT, CALL_END };

/* What can be wrong. */
enum { FAULTS = 1, SHOWS_OTHER, SHOWS_TOO_EARLY, WRITTEN, NOT_WRITTEN, WRITTEN_ELSEWHERE, DIRTY_LOST };

#define WINDOW (1ul << 39)
#define LARGE_PAGE (2ul << 20)
#define APIC 0xfee00000ul
#define FAULTED (~0ul)
#define PAGE_ALIGNED __attribute__((aligned(4096)))

typedef u64 page_table[WORDS];

/* What one vCPU writes, and the other reads: on a page of its own. */
struct PAGE_ALIGNED mine {
    /* The round that the shared slots are in, as far as this vCPU is concerned, and the private slots' round. */
    volatile u64 round, private_round;
    /* The last round of which every shared slot was looked at. */
    volatile u64 checked;
    /* By slot, the round in which this vCPU last wrote through it, plus 1. */
    volatile u64 wrote[SLOTS];
    volatile u64 looks, faults, wrong;
    /* The first wrong look: slot, round, what was wrong. */
    volatile u64 first[3];
};

struct frame {
    u64 r11, r10, r9, r8, rdi, rsi, rbp, rbx, rdx, rcx, rax;
    u64 vector, error, rip, cs, rflags, rsp, ss;
};

struct __attribute__((packed)) table_pointer {
    u16 limit;
    u64 base;
};

PAGE_ALIGNED page_table root, low_pointers, low_directory, apic_directory;
PAGE_ALIGNED page_table window_pointers, window_directory, near_table;
/* The tables that a far slot's directory entry changes between. */
PAGE_ALIGNED page_table far_tables[SLOTS - NEAR_SLOTS][FRAMES];
PAGE_ALIGNED volatile u64 frames[FRAMES][WORDS];
PAGE_ALIGNED u8 kernel_stacks[2][4096];
PAGE_ALIGNED u8 user_stacks[2][4096];
static struct mine vcpus[2];
PAGE_ALIGNED static struct {
    u64 rounds, seed;
} params;
PAGE_ALIGNED u64 gdt[GDT_ENTRIES] = {
    0, 0, 0x00af9b000000ffff, 0x00cf93000000ffff, 0, 0x00cff3000000ffff, 0x00affb000000ffff, 0,
};
static u64 idt[2 * (SHOOTDOWN_VECTOR + 1)];
static u32 tasks[2][26];

extern const u64 exception_stubs[32], shootdown_stub;
extern const u8 trampoline[], trampoline_end[];
void enter_user(void (*code)(void), u8 *stack);

static void out8(u16 port, u8 value) { __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port)); }
static void out16(u16 port, u16 value) { __asm__ volatile("outw %0, %1" : : "a"(value), "Nd"(port)); }
static void invlpg(u64 address) { __asm__ volatile("invlpg (%0)" : : "r"(address) : "memory"); }
static void load_root(void) { __asm__ volatile("mov %0, %%cr3" : : "r"((u64)root) : "memory"); }
static u64 fault_address(void)
{
    u64 address;
    __asm__ volatile("mov %%cr2, %0" : "=r"(address));
    return address;
}
static void apic_write(u32 reg, u32 value)
{
    __asm__ volatile("movl %1, (%0)" : : "r"(APIC + reg), "r"(value) : "memory");
}

/* ---- what is printed ---- */

static void put_text(const char *text)
{
    while (*text)
        out8(0x3f8, (u8)*text++);
}

static void put_number(u64 number)
{
    char digits[21];
    int at = 20;
    digits[at] = 0;
    do
        digits[--at] = (char)('0' + number % 10);
    while (number /= 10);
    put_text(digits + at);
}

static void put(const char *name, u64 number)
{
    put_text(name);
    put_number(number);
}

static void __attribute__((noreturn)) panic(void)
{
    put_text("\n");
    out8(0x505, 1);
    for (;;)
        __asm__ volatile("hlt");
}

/* ---- the plan: what a slot shows in a round ---- */

static int is_private(int slot) { return slot == SHARED_NEAR || slot == SHARED_FAR; }
static u64 frame_of(int slot, u64 round) { return (round + 3 * (u64)slot) % FRAMES; }

/* 0 and 1: writable; 2: read-only; 3: not there. */
static u64 kind_of(int slot, u64 round)
{
    u64 mixed = (round + 1) * 0x9e3779b97f4a7c15 + (u64)(slot + 1) * 0xbf58476d1ce4e5b9 + params.seed;
    mixed ^= mixed >> 29;
    mixed *= 0x94d049bb133111eb;
    return mixed >> 62;
}

static u64 shown(int slot, u64 round) { return kind_of(slot, round) == 3 ? FAULTED : frame_of(slot, round); }
static int is_writable(int slot, u64 round) { return kind_of(slot, round) < 2; }

static u64 address_of(int slot)
{
    return slot < NEAR_SLOTS ? WINDOW + 4096 * (u64)slot : WINDOW + LARGE_PAGE * (u64)(slot - NEAR_SLOTS + 1);
}

/* The entry that changes. */
static volatile u64 *place_of(int slot)
{
    return slot < NEAR_SLOTS ? &near_table[slot] : &window_directory[slot - NEAR_SLOTS + 1];
}

/* The last entry on the way to what a slot shows in a round. */
static volatile u64 *leaf_of(int slot, u64 round)
{
    return slot < NEAR_SLOTS ? &near_table[slot] : &far_tables[slot - NEAR_SLOTS][frame_of(slot, round)][0];
}

/* What the entry that changes is set to. */
static u64 entry_of(int slot, u64 round)
{
    u64 frame = frame_of(slot, round);
    u64 to = slot < NEAR_SLOTS ? (u64)frames[frame] : (u64)far_tables[slot - NEAR_SLOTS][frame];
    u64 kind = kind_of(slot, round);
    return kind == 3 ? 0 : kind == 2 ? to | PRESENT | USER : to | PRESENT | USER | WRITABLE;
}

static void is_wrong(int cpu, int slot, u64 round, u64 what)
{
    struct mine *mine = &vcpus[cpu];
    if (mine->wrong++ == 0) {
        mine->first[0] = (u64)slot;
        mine->first[1] = round;
        mine->first[2] = what;
    }
}

/* ---- at CPL 0 ---- */

/* Takes a slot from the round before, if there was one, to this. Translations are not flushed. */
static void install(int slot, u64 round)
{
    u64 wrote[2] = {vcpus[0].wrote[slot], vcpus[1].wrote[slot]};
    volatile u64 *place = place_of(slot);
    u64 old = *place;
    if (slot >= NEAR_SLOTS)
        *leaf_of(slot, round) = (u64)frames[frame_of(slot, round)] | PRESENT | USER | WRITABLE;
    *place = entry_of(slot, round);
    if (slot >= NEAR_SLOTS && round)
        old = *leaf_of(slot, round - 1);
    for (int cpu = 0; cpu < 2; cpu++)
        if (round && wrote[cpu] == round && is_writable(slot, round - 1) && !(old & DIRTY))
            is_wrong(cpu, slot, round - 1, DIRTY_LOST);
}

static void flush(int private, u64 round)
{
    if (round & 1) {
        load_root();
        return;
    }
    for (int slot = 0; slot < SLOTS; slot++)
        if (is_private(slot) == private)
            invlpg(address_of(slot));
}

static void change(int private, u64 round)
{
    for (int slot = 0; slot < SLOTS; slot++)
        if (is_private(slot) == private)
            install(slot, round);
    flush(private, round);
}

static void __attribute__((noreturn)) end(void)
{
    u64 wrong = 0;
    for (int cpu = 0; cpu < 2; cpu++) {
        struct mine *mine = &vcpus[cpu];
        wrong += mine->wrong;
        /* Slots that are not there or read-only have come by. */
        wrong += params.rounds >= 10 && (mine->looks < params.rounds || mine->faults < params.rounds);
        if (mine->wrong) {
            put("vcpu ", (u64)cpu);
            put(" slot ", mine->first[0]);
            put(" round ", mine->first[1]);
            put(" what ", mine->first[2]);
            put_text("\n");
        }
    }
    put("wrong ", wrong);
    if (wrong)
        panic();
    put_text("\n");
    out16(0x604, 0x3400);
    for (;;)
        __asm__ volatile("hlt");
}

static void call(struct frame *frame)
{
    struct mine *mine = &vcpus[0];
    switch (frame->rax) {
    case CALL_PRIVATE:
        change(1, mine->private_round + 1);
        mine->private_round++;
        break;
    case CALL_SHARED:
        change(0, mine->round + 1);
        mine->round++;
        break;
    case CALL_SHOOT:
        apic_write(0x310, 1u << 24);
        apic_write(0x300, 0x4000 | SHOOTDOWN_VECTOR);
        break;
    default:
        end();
    }
}

void trap(struct frame *frame)
{
    int cpu = (u8 *)frame >= kernel_stacks[1];
    int is_user = (frame->cs & 3) == 3;
    if (frame->vector == SHOOTDOWN_VECTOR && cpu == 1) {
        flush(0, vcpus[1].round + 1);
        vcpus[1].round++;
        apic_write(0xb0, 0);
        return;
    }
    if (frame->vector == 6 && is_user && cpu == 0) {
        frame->rip += 2;
        call(frame);
        return;
    }
    u64 offset = fault_address() - WINDOW;
    if (frame->vector == 14 && is_user && offset < LARGE_PAGE * WORDS) {
        /* Both accesses to windows are of three bytes, and by RAX. */
        frame->rax = FAULTED;
        frame->rip += 3;
        vcpus[cpu].faults++;
        return;
    }
    put("vcpu ", (u64)cpu);
    put(" vector ", frame->vector);
    put(" error ", frame->error);
    put(" at ", frame->rip);
    put(" address ", fault_address());
    panic();
}

/* ---- at CPL 3 ---- */

static u64 load(u64 address)
{
    u64 value;
    __asm__ volatile(".byte 0x48, 0x8b, 0x01" : "=a"(value) : "c"(address) : "memory");
    return value;
}

/* Whether the store was done. */
static int store(u64 address, u64 value)
{
    __asm__ volatile(".byte 0x48, 0x89, 0x01" : "+a"(value) : "c"(address) : "memory");
    return value != FAULTED;
}

static void system_call(u64 number)
{
    __asm__ volatile("ud2" : "+a"(number) : : "memory");
}

/* Looks at a slot. `round` is where this vCPU's round is told; `ahead` is how many more vCPU 0 may have begun. */
static void look(int cpu, int slot, volatile u64 *round, u64 ahead)
{
    struct mine *mine = &vcpus[cpu];
    u64 address = address_of(slot);
    int is_right = 0;
    u64 from = *round;
    u64 found = load(address);
    u64 to = *round + ahead;
    for (u64 at = from; at <= to; at++)
        is_right |= found == shown(slot, at);
    if (!is_right)
        is_wrong(cpu, slot, from, found == FAULTED ? FAULTS : SHOWS_OTHER);
    /* What shows already must be in the tables already. */
    __asm__ volatile("mfence" : : : "memory");
    if (is_right && found != shown(slot, from) && (*place_of(slot) & ~(u64)(ACCESSED | DIRTY)) == entry_of(slot, from))
        is_wrong(cpu, slot, from, SHOWS_TOO_EARLY);

    is_right = 0;
    from = *round;
    int was_done = store(address + 8 + 8 * (u64)cpu, from);
    to = *round + ahead;
    if (was_done && to - from == ahead)
        mine->wrote[slot] = from + 1;
    for (u64 at = from; at <= to; at++)
        is_right |= was_done == is_writable(slot, at);
    if (!is_right)
        is_wrong(cpu, slot, from, was_done ? WRITTEN : NOT_WRITTEN);
    if (was_done && ahead == 0 && frames[frame_of(slot, from)][1] != from)
        is_wrong(cpu, slot, from, WRITTEN_ELSEWHERE);
    mine->looks++;
}

static void look_at_all(int cpu, int private, volatile u64 *round, u64 ahead)
{
    for (int slot = 0; slot < SLOTS; slot++)
        if (is_private(slot) == private)
            look(cpu, slot, round, ahead);
}

static void first_user(void)
{
    struct mine *mine = &vcpus[0];
    while (mine->round < params.rounds) {
        for (int turn = 0; turn < PRIVATE_TURNS; turn++) {
            look_at_all(0, 1, &mine->private_round, 0);
            system_call(CALL_PRIVATE);
            look_at_all(0, 1, &mine->private_round, 0);
        }
        while (vcpus[1].checked != mine->round + 1)
            __asm__ volatile("pause");
        system_call(CALL_SHARED);
        look_at_all(0, 0, &mine->round, 0);
        system_call(CALL_SHOOT);
    }
    while (vcpus[1].checked != mine->round + 1)
        __asm__ volatile("pause");
    system_call(CALL_END);
}

static void other_user(void)
{
    struct mine *mine = &vcpus[1];
    for (;;) {
        u64 round = mine->round;
        look_at_all(1, 0, &mine->round, 1);
        mine->checked = round + 1;
    }
}

/* ---- at boot ---- */

static void set_gate(int vector, u64 to)
{
    idt[2 * vector] = (to & 0xffff) | 0x10 << 16 | 0x8e00ul << 32 | (to >> 16 & 0xffff) << 48;
    idt[2 * vector + 1] = to >> 32;
}

static void write_tables(void)
{
    root[0] = (u64)low_pointers | PRESENT | WRITABLE | USER;
    root[WINDOW >> 39] = (u64)window_pointers | PRESENT | WRITABLE | USER;
    low_pointers[0] = (u64)low_directory | PRESENT | WRITABLE | USER;
    low_pointers[3] = (u64)apic_directory | PRESENT | WRITABLE;
    for (u64 page = 0; page < 8; page++)
        low_directory[page] = page * LARGE_PAGE | LARGE | PRESENT | WRITABLE | USER;
    apic_directory[APIC >> 21 & 511] = (APIC & ~(LARGE_PAGE - 1)) | LARGE | PRESENT | WRITABLE;
    window_pointers[0] = (u64)window_directory | PRESENT | WRITABLE | USER;
    window_directory[0] = (u64)near_table | PRESENT | WRITABLE | USER;
    for (u64 frame = 0; frame < FRAMES; frame++)
        frames[frame][0] = frame;
    for (int slot = 0; slot < SLOTS; slot++)
        install(slot, 0);
}

static void load_tables(int cpu)
{
    struct table_pointer gdt_pointer = {sizeof(gdt) - 1, (u64)gdt};
    struct table_pointer idt_pointer = {sizeof(idt) - 1, (u64)idt};
    u16 task = (u16)(0x40 + 16 * cpu);
    __asm__ volatile("lgdt %0" : : "m"(gdt_pointer));
    __asm__ volatile("lidt %0" : : "m"(idt_pointer));
    __asm__ volatile("ltr %0" : : "r"(task));
    apic_write(0xf0, 0x1ff);
}

static const char *number(const char *text, u64 *value)
{
    for (*value = 0; *text >= '0' && *text <= '9'; text++)
        *value = *value * 10 + (u64)(*text - '0');
    return text + (*text == ' ');
}

void start_first(const u8 *zero_page)
{
    const char *text = (const char *)(u64) * (const u32 *)(zero_page + 0x228);
    number(number(text, &params.rounds), &params.seed);
    for (int vector = 0; vector < 32; vector++)
        set_gate(vector, exception_stubs[vector]);
    set_gate(SHOOTDOWN_VECTOR, shootdown_stub);
    for (int cpu = 0; cpu < 2; cpu++) {
        u64 task = (u64)tasks[cpu], stack = (u64)kernel_stacks[cpu + 1];
        tasks[cpu][1] = (u32)stack;
        tasks[cpu][25] = sizeof(tasks[cpu]) << 16;
        gdt[8 + 2 * cpu] = (sizeof(tasks[cpu]) - 1) | (task & 0xffffff) << 16 | 0x89ul << 40 | (task >> 24 & 0xff) << 56;
    }
    write_tables();
    load_root();
    load_tables(0);
    for (u64 at = 0; at < (u64)(trampoline_end - trampoline); at++)
        ((volatile u8 *)TRAMPOLINE)[at] = trampoline[at];
    apic_write(0x310, 1u << 24);
    apic_write(0x300, 0x4500);
    apic_write(0x310, 1u << 24);
    apic_write(0x300, 0x4600 | TRAMPOLINE >> 12);
    enter_user(first_user, user_stacks[0] + 4088);
}

void start_other(void)
{
    load_tables(1);
    enter_user(other_user, user_stacks[1] + 4088);
}
