/* Garbage for local APICs, by their page and by MSRs, and for the IOAPIC. */

#include "hostile.h"

enum { TPR = 0x80, EOI = 0xb0, LDR = 0xd0, DFR = 0xe0, SVR = 0xf0, ISR = 0x100, IRR = 0x200, ESR = 0x280, ICR = 0x300, ICR_HIGH = 0x310 };
enum { LVT_TIMER = 0x320, LVT_ERROR = 0x370, INITIAL_COUNT = 0x380, DIVIDE = 0x3e0, MASKED = 0x10000, SELF = 0x40000 };
enum { APIC_BASE = 0x1b, DEADLINE = 0x6e0, X2_FIRST = 0x800, X2_EOI = 0x80b, X2_ICR = 0x830 };
enum { SELECT = 0, WINDOW = 0x10, IO_EOI = 0x40, REDIRECTIONS = 0x10, PINS = 24, TIMER_PIN = 2 };
enum { TRAMPOLINE = 0x8000, PIT = 0x40, NMI = 0x400, INIT = 0x500, START = 0x600 };

static void apic_write(u32 reg, u32 value) { store32(LOCAL_APIC + reg, value); }

/* A message, but none that stops a vCPU: who would start it again? */
static u64 without_stop(u64 message)
{
    u64 mode = message & 0x700;
    return mode == INIT || mode == START ? message & ~0x700ul : message;
}

static int any_size(int cpu) { return 1 << below(cpu, 4); }

/* ---- the local APIC's page ---- */

void local_apic_step(int cpu)
{
    int size = one_in(cpu, 3) ? any_size(cpu) : 4;
    u64 offset = one_in(cpu, 3) ? below(cpu, 0x1000 - (u64)size) : 16 * below(cpu, 0x40);
    u64 value = one_in(cpu, 3) ? random_bits(cpu) : random_bits(cpu) & 0x7ffff;
    vcpus[cpu].accesses++;
    if (one_in(cpu, 2))
        load_any(LOCAL_APIC + offset, size);
    else
        store_any(LOCAL_APIC + offset, size, without_stop(value));
}

/* ---- its MSRs ---- */

static u64 base_of(int cpu) { return LOCAL_APIC | (cpu == 0 ? 0x100 : 0); }

static void set_base(int cpu, u64 value)
{
    try_write_msr(APIC_BASE, value);
    if (try_read_msr(APIC_BASE, &value) == 0)
        vcpus[cpu].uses_msrs = (value & 0xc00) == 0xc00;
}

void msrs_step(int cpu)
{
    u64 value = one_in(cpu, 3) ? random_bits(cpu) : random_bits(cpu) & 0x7ffff;
    u32 index = X2_FIRST + (u32)below(cpu, one_in(cpu, 4) ? 0x100 : 0x40);
    vcpus[cpu].accesses++;
    switch (below(cpu, 12)) {
    case 0:
        /* Off, on, by MSRs; from each to each, as far as the processor allows. */
        set_base(cpu, base_of(cpu) | below(cpu, 4) << 10);
        break;
    case 1:
        set_base(cpu, random_bits(cpu));
        break;
    case 2:
        try_write_msr(DEADLINE, value);
        break;
    case 3:
    case 4:
    case 5:
    case 6:
        try_read_msr(index, &value);
        break;
    default:
        try_write_msr(index, without_stop(value));
    }
}

/* ---- the IOAPIC ---- */

/* What sends messages through it. */
static void start_timer(int cpu)
{
    out8(PIT + 3, (u8)(below(cpu, 6) << 1 | 0x30));
    out8(PIT, (u8)random_bits(cpu));
    out8(PIT, (u8)below(cpu, 4));
}

void ioapic_step(int cpu)
{
    int size = one_in(cpu, 4) ? any_size(cpu) : 4;
    u64 value = without_stop(random_bits(cpu));
    vcpus[cpu].accesses++;
    switch (below(cpu, 8)) {
    case 0:
        start_timer(cpu);
        break;
    case 1:
        load_any(IOAPIC + below(cpu, 0x1000 - (u64)size), size);
        break;
    case 2:
        store_any(IOAPIC + below(cpu, 0x1000 - (u64)size), size, value);
        break;
    case 3:
        store_any(IOAPIC + IO_EOI, size, value);
        break;
    default:
        store32(IOAPIC + SELECT, (u32)(one_in(cpu, 4) ? random_bits(cpu) : REDIRECTIONS + below(cpu, 2 * PINS)));
        /* Half of them for everybody. */
        store_any(IOAPIC + WINDOW, size, one_in(cpu, 2) ? value & ~(u64)MASKED : value | 0xff000000);
    }
}

/* ---- and back ---- */

static int has_any(u32 first)
{
    u32 bits = 0;
    for (u32 reg = first; reg < first + 0x80; reg += 0x10)
        bits |= load32(LOCAL_APIC + reg);
    return bits != 0;
}

static void drain(void)
{
    u32 begin = clock_now();
    while (has_any(ISR))
        apic_write(EOI, 0);
    while (has_any(IRR)) {
        /* Interrupts come between two instructions of which the first ends a chunk. */
        interrupts_on();
        in8(0x80);
        interrupts_off();
        if (is_past(begin, 60 * SECOND))
            panic("requested interrupts do not come");
    }
}

void local_apic_restore(int cpu)
{
    interrupts_off();
    set_base(cpu, base_of(cpu));
    set_base(cpu, base_of(cpu) | 0x800);
    if (vcpus[cpu].uses_msrs)
        panic("the local APIC does not leave its mode");
    apic_write(INITIAL_COUNT, 0);
    for (u32 reg = LVT_TIMER; reg <= LVT_ERROR; reg += 0x10)
        apic_write(reg, MASKED);
    apic_write(SVR, 0x1ff);
    apic_write(TPR, 0);
    apic_write(LDR, 0);
    apic_write(DFR, ~0u);
    drain();
    apic_write(ESR, 0);
    apic_write(ESR, 0);
    if (load32(LOCAL_APIC + ESR))
        panic("the local APIC keeps an error");
}

static void set_pin(u32 pin, u32 high, u32 low)
{
    /* Masked, as an edge: a remote IRR that is stuck goes. */
    store32(IOAPIC + SELECT, REDIRECTIONS + 2 * pin);
    store32(IOAPIC + WINDOW, MASKED);
    store32(IOAPIC + SELECT, REDIRECTIONS + 2 * pin + 1);
    store32(IOAPIC + WINDOW, high);
    store32(IOAPIC + SELECT, REDIRECTIONS + 2 * pin);
    store32(IOAPIC + WINDOW, low);
}

void ioapic_restore(void)
{
    out8(PIT + 3, 0x30);
    for (u32 pin = 0; pin < PINS; pin++)
        set_pin(pin, 0, MASKED);
}

/* ---- what must hold ---- */

static void await(const volatile u64 *count, u64 old, const char *what)
{
    u32 begin = clock_now();
    while (*count == old) {
        interrupts_on();
        in8(0x80);
        interrupts_off();
        if (is_past(begin, 60 * SECOND))
            panic(what);
    }
}

void local_apic_prove(void)
{
    struct mine *mine = &vcpus[0];
    u64 before = mine->probes;
    apic_write(ICR, SELF | PROBE_VECTOR);
    await(&mine->probes, before, "an interrupt to myself");
    before = mine->probes;
    apic_write(DIVIDE, 0xb);
    apic_write(LVT_TIMER, PROBE_VECTOR);
    apic_write(INITIAL_COUNT, 100000);
    await(&mine->probes, before, "the local APIC's timer");
    apic_write(LVT_TIMER, MASKED);
    before = mine->nonmaskable;
    apic_write(ICR_HIGH, 0);
    apic_write(ICR, NMI);
    await(&mine->nonmaskable, before, "an NMI to myself");
}

void ioapic_prove(void)
{
    struct mine *mine = &vcpus[0];
    u64 before = mine->probes;
    set_pin(TIMER_PIN, 0, PROBE_VECTOR);
    out8(PIT + 3, 0x30);
    out8(PIT, 0);
    out8(PIT, 1);
    await(&mine->probes, before, "the timer's interrupt");
    ioapic_restore();
}

void wake_other(void)
{
    apic_write(ICR_HIGH, 1u << 24);
    apic_write(ICR, 0x4000 | WAKE_VECTOR);
}

void restart_other(void)
{
    u64 before = vcpus[1].starts;
    apic_write(ICR_HIGH, 1u << 24);
    apic_write(ICR, 0x4000 | INIT);
    apic_write(ICR_HIGH, 1u << 24);
    apic_write(ICR, 0x4000 | START | TRAMPOLINE >> 12);
    await(&vcpus[1].starts, before, "the other vCPU's start");
}
