/* What the parts of the hostile kernel share. */

#ifndef HOSTILE_H
#define HOSTILE_H

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;

#define PAGE_ALIGNED __attribute__((aligned(4096)))
#define LOCAL_APIC 0xfee00000ul
#define IOAPIC 0xfec00000ul
#define VIRTIO 0xd0000000ul
#define WINDOW_BYTES 0x1000ul
/* The last megabytes of memory: all that devices may write, if they do what descriptors say. */
#define ARENA_BYTES (4ul << 20)

enum { WAKE_VECTOR = 0x41, PROBE_VECTOR = 0x42, BLOCK_ID = 2, NET_ID = 1, CONSOLE_ID = 3, ENTROPY_ID = 4, WINDOWS = 8 };

/* ---- the processor ---- */

static inline void out8(u16 port, u8 value) { __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port)); }
static inline void out16(u16 port, u16 value) { __asm__ volatile("outw %0, %1" : : "a"(value), "Nd"(port)); }
static inline void out32(u16 port, u32 value) { __asm__ volatile("outl %0, %1" : : "a"(value), "Nd"(port)); }
static inline u8 in8(u16 port)
{
    u8 value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}
static inline u16 in16(u16 port)
{
    u16 value;
    __asm__ volatile("inw %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}
static inline u32 in32(u16 port)
{
    u32 value;
    __asm__ volatile("inl %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}
static inline u32 load32(u64 address)
{
    u32 value;
    __asm__ volatile("movl (%1), %0" : "=r"(value) : "r"(address) : "memory");
    return value;
}
static inline void store32(u64 address, u32 value)
{
    __asm__ volatile("movl %1, (%0)" : : "r"(address), "r"(value) : "memory");
}
static inline void interrupts_on(void) { __asm__ volatile("sti" : : : "memory"); }
static inline void interrupts_off(void) { __asm__ volatile("cli" : : : "memory"); }

/* entry.S: 0, or 1 if the processor refused. */
int try_read_msr(u32 index, u64 *value);
int try_write_msr(u32 index, u64 value);
int try_load(u64 address, u64 *value);

/* Any access of 1, 2, 4 or 8 bytes. */
u64 load_any(u64 address, int size);
void store_any(u64 address, int size, u64 value);

/* ---- vCPUs ---- */

/* What one vCPU writes, and the other reads: on a page of its own. */
struct PAGE_ALIGNED mine {
    volatile u64 random;
    volatile u64 interrupts, nonmaskable, probes, wakes;
    volatile u64 starts;
    volatile u64 doing;
    /* Loads and stores of garbage, and rings. */
    volatile u64 accesses, rings, refusals;
    volatile int uses_msrs;
};
extern struct mine vcpus[2];

/* What to do, by number, and in which window. 0: rest. vCPU 0 writes it. */
struct PAGE_ALIGNED orders {
    volatile u64 phase, window, amount, client_answers;
    u64 seed, arena;
};
extern struct orders orders;

/* ---- random numbers ---- */

u64 random_bits(int cpu);
static inline u64 below(int cpu, u64 limit) { return (random_bits(cpu) >> 16) % limit; }
static inline int one_in(int cpu, u64 count) { return below(cpu, count) == 0; }

/* ---- text.c ---- */

void put_text(const char *text);
void put_number(u64 number);
void put(const char *name, u64 number);
void serial_restore(void);
void __attribute__((noreturn)) panic(const char *why);

/* ---- time: of the power management timer ---- */

#define SECOND 3579545u
u32 clock_now(void);
static inline int is_past(u32 begin, u32 ticks) { return ((clock_now() - begin) & 0xffffffff) > ticks; }

/* ---- the phases: a step of garbage each, and what must hold when both vCPUs rest ---- */

void serial_step(int cpu);
void timers_step(int cpu);
void cmos_step(int cpu);
void ports_step(int cpu);
void serial_prove(void);
void timers_prove(void);
void cmos_prove(void);
void ports_prove(void);

void local_apic_step(int cpu);
void msrs_step(int cpu);
void ioapic_step(int cpu);
/* Everything masked and acknowledged, on the calling vCPU. */
void local_apic_restore(int cpu);
void ioapic_restore(void);
void local_apic_prove(void);
void ioapic_prove(void);
void wake_other(void);
void restart_other(void);

u32 device_id(u64 window);
void window_step(int cpu);
void rings_step(int cpu);
void device_prove(void);

#endif
