// Answers every line typed at the console; the line "q" ends the run.
#include "guest.h"

struct param program_params[] = {PARAMS_END};

#define KEPT 200
#define NOTHING (~0ul)

// The next byte typed, however long that takes.
static char next_byte(void) {
    u64 byte;
    WAIT_UNTIL((byte = device_read(CONSOLE)) != NOTHING);
    return (char)byte;
}

// Reads a line; keeps its first bytes, counts all of them.
static u64 read_line(char kept[KEPT]) {
    u64 bytes = 0;
    for (;;) {
        char c = next_byte();
        if (c == '\n') return bytes;
        if (bytes < KEPT) kept[bytes] = c >= ' ' && c < 127 ? c : '.';
        bytes++;
    }
}

void program_run(struct vcpu *cpu) {
    if (cpu->index != 0) return;
    char kept[KEPT];
    say(cpu, "type lines, q to end\n");
    for (u64 lines = 1;; lines++) {
        u64 bytes = read_line(kept);
        device_write(MARK, lines);
        if (bytes == 1 && kept[0] == 'q') break;
        say(cpu, "%lu: %lu bytes: ", lines, bytes);
        for (u64 i = 0; i < bytes && i < KEPT; i++) say(cpu, "%c", kept[i]);
        say(cpu, "\n");
    }
    say(cpu, "bye\n");
}
