/* Garbage for what a PC has at its I/O ports. */

#include "hostile.h"

enum { SERIAL = 0x3f8, PIT = 0x40, PORT_B = 0x61, PIC_MASTER = 0x20, PIC_SLAVE = 0xa0, EDGE_LEVEL = 0x4d0, CMOS = 0x70 };
enum { KEYBOARD = 0x64, FAST_RESET = 0x92, PVPANIC = 0x505, POWER = 0x600, RESET_CONTROL = 0xcf9 };

/* The byte, without what would end the machine: there would be nothing more to see. */
static u8 without_end(u16 port, u8 byte)
{
    switch (port) {
    case KEYBOARD:
        return byte == 0xd1 || (byte & 0xf1) == 0xf0 ? 0xaa : byte;
    case FAST_RESET:
    case PVPANIC:
        return byte & ~1;
    case POWER + 5:
        return byte & ~0x20;
    case RESET_CONTROL:
        return byte & ~4;
    default:
        return byte;
    }
}

/* A load or a store of 1, 2 or 4 bytes. */
static void access(int cpu, u16 port)
{
    u64 kind = below(cpu, 6);
    u32 garbage = (u32)random_bits(cpu), value = 0;
    for (u16 at = 0; at < 4; at++)
        value |= (u32)without_end((u16)(port + at), (u8)(garbage >> 8 * at)) << 8 * at;
    vcpus[cpu].accesses++;
    switch (kind) {
    case 0:
        out8(port, (u8)value);
        break;
    case 1:
        out16(port, (u16)value);
        break;
    case 2:
        out32(port, value);
        break;
    case 3:
        in8(port);
        break;
    case 4:
        in16(port);
        break;
    default:
        in32(port);
    }
}

void serial_step(int cpu) { access(cpu, (u16)(SERIAL - 2 + below(cpu, 12))); }

void timers_step(int cpu)
{
    static const u16 ports[] = {PIT, PIT + 1, PIT + 2, PIT + 3, PIT + 3, PORT_B, PIC_MASTER, PIC_MASTER + 1, PIC_SLAVE, PIC_SLAVE + 1, EDGE_LEVEL};
    access(cpu, ports[below(cpu, sizeof(ports) / sizeof(*ports))]);
}

void cmos_step(int cpu)
{
    out8(CMOS, (u8)(one_in(cpu, 4) ? random_bits(cpu) : below(cpu, 0x0e)));
    access(cpu, CMOS + 1);
}

/* Power management, the reset ports, and ports where there is nothing. */
void ports_step(int cpu)
{
    static const u16 ports[] = {0x60, KEYBOARD, FAST_RESET, 0x80, RESET_CONTROL - 1, RESET_CONTROL, 0xcfc, PVPANIC};
    switch (below(cpu, 3)) {
    case 0:
        access(cpu, ports[below(cpu, sizeof(ports) / sizeof(*ports))]);
        break;
    case 1:
        access(cpu, (u16)(POWER - 2 + below(cpu, 16)));
        break;
    default:
        access(cpu, (u16)random_bits(cpu));
    }
}

/* Loopback: what is sent comes back. */
void serial_prove(void)
{
    serial_restore();
    out8(SERIAL + 7, 0x5a);
    if (in8(SERIAL + 7) != 0x5a || !(in8(SERIAL + 5) & 0x20))
        panic("the serial port's registers");
    for (int at = 0; at < 4096 && in8(SERIAL + 5) & 1; at++)
        in8(SERIAL);
    out8(SERIAL + 4, 0x10);
    out8(SERIAL, 0xc3);
    int is_back = in8(SERIAL + 5) & 1 && in8(SERIAL) == 0xc3;
    serial_restore();
    if (!is_back)
        panic("the serial port's loopback");
}

/* It can be initialised, and keeps its mask. */
static void pic_prove(u16 port, u8 cascade)
{
    out8(port, 0x11);
    out8(port + 1, 0x20);
    out8(port + 1, cascade);
    out8(port + 1, 1);
    out8(port + 1, 0xff);
    if (in8(port + 1) != 0xff)
        panic("an interrupt controller's mask");
}

/* Channel 2 counts, and its output rises at the end. Channel 0 is left idle. */
void timers_prove(void)
{
    out8(PIT + 3, 0x30);
    out8(PORT_B, 0);
    out8(PIT + 3, 0xb0);
    out8(PIT + 2, 0xff);
    out8(PIT + 2, 0x3f);
    if (in8(PORT_B) & 0x20)
        panic("channel 2 has ended before it began");
    out8(PORT_B, 1);
    u32 begin = clock_now();
    while (!(in8(PORT_B) & 0x20))
        if (is_past(begin, SECOND * 30))
            panic("channel 2 does not end");
    out8(PORT_B, 0);
    pic_prove(PIC_MASTER, 4);
    pic_prove(PIC_SLAVE, 2);
}

static u8 cmos_read(u8 index)
{
    out8(CMOS, index);
    return in8(CMOS + 1);
}

static void cmos_write(u8 index, u8 value)
{
    out8(CMOS, index);
    out8(CMOS + 1, value);
}

/* It can be set, and goes on from there. */
void cmos_prove(void)
{
    static const u8 date[][2] = {{0x0a, 0x26}, {0x0b, 0x82}, {0x00, 0x59}, {0x02, 0x59}, {0x04, 0x23}, {0x06, 0x07}, {0x07, 0x31}, {0x08, 0x12}, {0x09, 0x99}, {0x32, 0x19}, {0x0b, 0x02}};
    for (u64 at = 0; at < sizeof(date) / sizeof(*date); at++)
        cmos_write(date[at][0], date[at][1]);
    u32 begin = clock_now();
    while (cmos_read(0x09) != 0x00)
        if (is_past(begin, SECOND * 60))
            panic("the clock does not reach the next century");
    if (cmos_read(0x32) != 0x20 || cmos_read(0x08) != 0x01 || cmos_read(0x07) != 0x01)
        panic("the clock's date");
    cmos_write(0x40, 0x77);
    if (cmos_read(0x40) != 0x77)
        panic("the clock's memory");
}

/* The timer runs, and there is nothing where nothing is. */
void ports_prove(void)
{
    u32 begin = clock_now();
    for (u64 at = 0; clock_now() == begin; at++)
        if (at > 1000000)
            panic("the power management timer stands still");
    out16(POWER + 2, 0x0120);
    if (in16(POWER + 2) != 0x0120 || in16(POWER) != 0 || in8(0x1f7) != 0xff)
        panic("power management's registers");
}
