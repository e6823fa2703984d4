/* A kernel for two vCPUs of a PC that does to its devices what no driver does. Command line: "SEED AMOUNT CLIENT".

   Phase by phase both vCPUs give a device garbage: every register of it, in every size, and of a virtio device rings
   that are wrong in every way. Then both rest, the device is reset, and it must still do what it is there for. After
   each phase a line says so; in the end the machine is powered off. If anything is wrong, it panics.

   What would end the machine, or stop a vCPU for good, is left out. AMOUNT is of garbage in a phase; CLIENT is 1 if
   10.77.0.1 answers on the network. All code runs at CPL 0, with the loader's page tables. */

#include "hostile/hostile.h"

enum { TRAMPOLINE = 0x8000, VECTORS = 256, NMI_VECTOR = 2, EXCEPTIONS = 16, RESTARTS = 8, RINGS_PER_AMOUNT = 4 };
enum { RESTART = 8, GARBAGE, RINGS };

struct frame {
    u64 r11, r10, r9, r8, rdi, rsi, rbp, rbx, rdx, rcx, rax;
    u64 vector, error, rip, cs, rflags, rsp, ss;
};

struct __attribute__((packed)) table_pointer {
    u16 limit;
    u64 base;
};

struct phase {
    const char *name;
    void (*step)(int cpu);
    void (*prove)(void);
};

/* By number. */
static const struct phase phases[] = {
    {"rest", 0, 0},
    {"serial port", serial_step, serial_prove},
    {"timers", timers_step, timers_prove},
    {"clock", cmos_step, cmos_prove},
    {"ports", ports_step, ports_prove},
    {"local APIC", local_apic_step, local_apic_prove},
    {"APIC MSRs", msrs_step, local_apic_prove},
    {"IOAPIC", ioapic_step, ioapic_prove},
    {"restarts", cmos_step, cmos_prove},
    {"registers", window_step, device_prove},
    {"rings", rings_step, device_prove},
};

struct mine vcpus[2];
struct orders orders;
PAGE_ALIGNED u8 kernel_stacks[2][0x4000];
PAGE_ALIGNED u64 gdt[4] = {0, 0, 0x00af9b000000ffff, 0x00cf93000000ffff};
PAGE_ALIGNED static u64 idt[2 * VECTORS];

extern const u64 stubs[VECTORS];
extern const u8 trampoline[], trampoline_end[], try_begin[], try_end[], refused[];

/* ---- traps ---- */

static void end_interrupt(struct mine *mine)
{
    if (!mine->uses_msrs || try_write_msr(0x80b, 0))
        store32(LOCAL_APIC + 0xb0, 0);
}

void trap(struct frame *frame)
{
    struct mine *mine = &vcpus[(u8 *)frame >= kernel_stacks[1]];
    if (frame->vector == NMI_VECTOR) {
        mine->nonmaskable++;
    } else if (frame->vector >= EXCEPTIONS) {
        mine->interrupts++;
        mine->probes += frame->vector == PROBE_VECTOR;
        mine->wakes += frame->vector == WAKE_VECTOR;
        end_interrupt(mine);
    } else if (frame->rip >= (u64)try_begin && frame->rip < (u64)try_end) {
        frame->rip = (u64)refused;
    } else {
        put("\nvector ", frame->vector);
        put(" error ", frame->error);
        put(" at ", frame->rip);
        panic("an exception");
    }
}

static void set_gates(void)
{
    for (int vector = 0; vector < VECTORS; vector++) {
        u64 to = stubs[vector];
        idt[2 * vector] = (to & 0xffff) | 0x10 << 16 | 0x8e00ul << 32 | (to >> 16 & 0xffff) << 48;
        idt[2 * vector + 1] = to >> 32;
    }
}

static void load_tables(void)
{
    struct table_pointer gdt_pointer = {sizeof(gdt) - 1, (u64)gdt};
    struct table_pointer idt_pointer = {sizeof(idt) - 1, (u64)idt};
    __asm__ volatile("lgdt %0" : : "m"(gdt_pointer));
    __asm__ volatile("lidt %0" : : "m"(idt_pointer));
}

/* ---- phases ---- */

static void await_other(u64 phase)
{
    u32 begin = clock_now(), woken = begin;
    while (vcpus[1].doing != phase) {
        if (phase && is_past(woken, SECOND / 4)) {
            wake_other();
            woken = clock_now();
        }
        if (is_past(begin, 120 * SECOND))
            panic("the other vCPU does not follow");
    }
}

static void begin_phase(u64 phase, u64 window)
{
    orders.window = window;
    orders.phase = phase;
    wake_other();
    await_other(phase);
}

/* Both rest, and all is as it was. */
static void end_phase(u64 phase)
{
    orders.phase = 0;
    local_apic_restore(0);
    ioapic_restore();
    await_other(0);
    serial_restore();
    phases[phase].prove();
    serial_restore();
    put_text("hostile: ");
    put_text(phases[phase].name);
    if (phase >= GARBAGE) {
        put(" of window ", orders.window);
        put(" device ", device_id(orders.window));
    }
    put(": fine after accesses ", vcpus[0].accesses + vcpus[1].accesses);
    put(" rings ", vcpus[0].rings);
    put(" refused ", vcpus[0].refusals);
    put_text("\n");
}

static void run_phase(u64 phase, u64 window)
{
    u64 amount = phase == RINGS ? orders.amount / RINGS_PER_AMOUNT : orders.amount;
    begin_phase(phase, window);
    interrupts_on();
    for (u64 step = 0; step < amount; step++)
        phases[phase].step(0);
    end_phase(phase);
}

/* The other vCPU is stopped and started in the middle of what it does. */
static void run_restarts(void)
{
    for (int restart = 0; restart < RESTARTS; restart++) {
        begin_phase(RESTART, 0);
        for (u64 wait = below(0, 64); wait > 0; wait--)
            clock_now();
        restart_other();
    }
    end_phase(RESTART);
}

static void run_all(void)
{
    u64 windows = 0;
    for (u64 phase = 1; phase < RESTART; phase++)
        run_phase(phase, 0);
    run_restarts();
    while (windows < WINDOWS && device_id(windows))
        windows++;
    for (u64 window = 0; window < windows; window++) {
        run_phase(GARBAGE, window);
        run_phase(RINGS, window);
    }
    /* Where no device is. */
    if (windows < WINDOWS)
        run_phase(GARBAGE, windows);
    put("hostile: done, interrupts ", vcpus[0].interrupts + vcpus[1].interrupts);
    put(" nonmaskable ", vcpus[0].nonmaskable + vcpus[1].nonmaskable);
    put(" devices ", windows);
    put_text("\n");
}

static void __attribute__((noreturn)) power_off(void)
{
    out16(0x604, 0x3400);
    for (;;)
        __asm__ volatile("hlt");
}

/* ---- at boot ---- */

static const char *number(const char *text, volatile u64 *value)
{
    for (*value = 0; *text >= '0' && *text <= '9'; text++)
        *value = *value * 10 + (u64)(*text - '0');
    return text + (*text == ' ');
}

/* Where the last entry of the map ends. */
static u64 memory_end(const u8 *zero_page)
{
    struct __attribute__((packed)) entry {
        u64 start, bytes;
        u32 kind;
    };
    const struct entry *map = (const struct entry *)(zero_page + 0x2d0);
    const struct entry *last = map + zero_page[0x1e8] - 1;
    return last->start + last->bytes;
}

static void copy_trampoline(void)
{
    for (u64 at = 0; at < (u64)(trampoline_end - trampoline); at++)
        ((volatile u8 *)TRAMPOLINE)[at] = trampoline[at];
}

static void fill_arena(void)
{
    enum { FILLED = 64 << 10 };
    for (u64 at = 0; at < FILLED; at += 8)
        *(volatile u64 *)(orders.arena + at) = random_bits(0);
}

void start_first(const u8 *zero_page)
{
    const char *text = (const char *)(u64) * (const u32 *)(zero_page + 0x228);
    volatile u64 seed;
    number(number(number(text, &seed), &orders.amount), &orders.client_answers);
    orders.seed = seed;
    orders.arena = memory_end(zero_page) - ARENA_BYTES;
    for (u64 cpu = 0; cpu < 2; cpu++)
        vcpus[cpu].random = (seed + 1) * 0x9e3779b97f4a7c15 ^ (cpu + 1) * 0xbf58476d1ce4e5b9;
    set_gates();
    load_tables();
    copy_trampoline();
    serial_restore();
    put("hostile: seed ", seed);
    put(" amount ", orders.amount);
    put_text("\n");
    fill_arena();
    local_apic_restore(0);
    ioapic_restore();
    restart_other();
    await_other(0);
    run_all();
    power_off();
}

static void rest(void)
{
    local_apic_restore(1);
    vcpus[1].doing = 0;
    while (orders.phase == 0)
        __asm__ volatile("sti; hlt; cli" : : : "memory");
}

/* Begins here each time that it is started. */
void start_other(void)
{
    struct mine *mine = &vcpus[1];
    load_tables();
    mine->starts++;
    for (;;) {
        rest();
        u64 phase = orders.phase;
        mine->doing = phase;
        interrupts_on();
        while (orders.phase == phase)
            phases[phase].step(1);
        interrupts_off();
    }
}
