// Text to the console, a whole line in one OUTPUT, and the two DMA operations.
#include "guest.h"

#include <stdarg.h>

static void transfer(struct vcpu *cpu, enum device_register reg, const void *buffer, u64 bytes) {
    cpu->dma.buffer = (u64)buffer;
    cpu->dma.bytes = bytes;
    cpu->dma.done = 0;
    device_write(reg, (u64)&cpu->dma);
}

u64 input_read(struct vcpu *cpu, void *buffer, u64 bytes) {
    transfer(cpu, INPUT, buffer, bytes < INPUT_MAX_BYTES ? bytes : INPUT_MAX_BYTES);
    u64 done = *(volatile u64 *)&cpu->dma.done;
    if (done > bytes) fail(cpu, WRONG, "INPUT of %lu bytes says it did %lu", bytes, done);
    return done;
}

void output_write(struct vcpu *cpu, const void *buffer, u64 bytes) {
    transfer(cpu, OUTPUT, buffer, bytes);
    u64 done = *(volatile u64 *)&cpu->dma.done;
    // Not said with OUTPUT, which has just failed.
    if (done != bytes) exit_with(WRONG);
}

void say_flush(struct vcpu *cpu) {
    if (cpu->line_bytes == 0) return;
    u64 bytes = cpu->line_bytes;
    cpu->line_bytes = 0;
    output_write(cpu, cpu->line, bytes);
}

static void put(struct vcpu *cpu, char c) {
    cpu->line[cpu->line_bytes++] = c;
    if (c == '\n' || cpu->line_bytes == LINE_BYTES) say_flush(cpu);
}

static void put_text(struct vcpu *cpu, const char *text) {
    while (*text) put(cpu, *text++);
}

static void put_number(struct vcpu *cpu, u64 value, u64 base, u64 width, char pad) {
    char digits[20];
    u64 n = 0;
    do {
        digits[n++] = "0123456789abcdef"[value % base];
        value /= base;
    } while (value);
    while (width > n) {
        put(cpu, pad);
        width--;
    }
    while (n) put(cpu, digits[--n]);
}

// One conversion, `at` being behind the '%'; returns the place behind it.
static const char *put_conversion(struct vcpu *cpu, const char *at, va_list *arguments) {
    char pad = *at == '0' ? '0' : ' ';
    u64 width = 0;
    while (*at >= '0' && *at <= '9') width = width * 10 + (u64)(*at++ - '0');
    if (*at == 'l') at++;
    switch (*at) {
    case 'u': put_number(cpu, va_arg(*arguments, u64), 10, width, pad); break;
    case 'x': put_number(cpu, va_arg(*arguments, u64), 16, width, pad); break;
    case 's': put_text(cpu, va_arg(*arguments, const char *)); break;
    case 'c': put(cpu, (char)va_arg(*arguments, int)); break;
    default: put(cpu, *at); break;
    }
    return at + 1;
}

static void say_list(struct vcpu *cpu, const char *format, va_list *arguments) {
    while (*format) {
        char c = *format++;
        if (c != '%') {
            put(cpu, c);
        } else if (*format) {
            format = put_conversion(cpu, format, arguments);
        }
    }
}

void say(struct vcpu *cpu, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    say_list(cpu, format, &arguments);
    va_end(arguments);
}

void fail(struct vcpu *cpu, u64 status, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    say_list(cpu, format, &arguments);
    va_end(arguments);
    put(cpu, '\n');
    exit_with(status);
}
