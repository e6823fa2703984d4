/* What is printed, and time. */

#include "hostile.h"

enum { SERIAL = 0x3f8, PM_TIMER = 0x608, PVPANIC = 0x505 };

/* After garbage in its registers: 8 bits, no loopback, no interrupts. */
void serial_restore(void)
{
    out8(SERIAL + 3, 3);
    out8(SERIAL + 4, 0);
    out8(SERIAL + 1, 0);
    put_text("\n");
}

void put_text(const char *text)
{
    while (*text)
        out8(SERIAL, (u8)*text++);
}

void put_number(u64 number)
{
    char digits[21];
    int at = 20;
    digits[at] = 0;
    do
        digits[--at] = (char)('0' + number % 10);
    while (number /= 10);
    put_text(digits + at);
}

void put(const char *name, u64 number)
{
    put_text(name);
    put_number(number);
}

void panic(const char *why)
{
    serial_restore();
    put_text("hostile: WRONG: ");
    put_text(why);
    put(" (phase ", orders.phase);
    put(" window ", orders.window);
    put_text(")\n");
    out8(PVPANIC, 1);
    for (;;)
        __asm__ volatile("cli; hlt");
}

u32 clock_now(void) { return in32(PM_TIMER); }

u64 random_bits(int cpu)
{
    u64 mixed = vcpus[cpu].random;
    mixed ^= mixed << 13;
    mixed ^= mixed >> 7;
    mixed ^= mixed << 17;
    vcpus[cpu].random = mixed;
    return mixed * 0x2545f4914f6cdd1d;
}

u64 load_any(u64 address, int size)
{
    switch (size) {
    case 1:
        return *(volatile u8 *)address;
    case 2:
        return *(volatile u16 *)address;
    case 4:
        return *(volatile u32 *)address;
    default:
        return *(volatile u64 *)address;
    }
}

void store_any(u64 address, int size, u64 value)
{
    switch (size) {
    case 1:
        *(volatile u8 *)address = (u8)value;
        break;
    case 2:
        *(volatile u16 *)address = (u16)value;
        break;
    case 4:
        *(volatile u32 *)address = (u32)value;
        break;
    default:
        *(volatile u64 *)address = value;
    }
}
