// Copies the input to the console; the vCPUs take the pieces in turn.
#include "guest.h"

enum { PIECE };
struct param program_params[] = {
    NUMBER("piece", 65536, 1, INPUT_MAX_BYTES),
    PARAMS_END,
};

#define ENDED (~0ul)

static struct {
    u64 turn; // number of pieces copied, or ENDED
    u64 bytes;
} OWN_PAGE shared;

static u8 *buffers;

static u64 buffer_bytes(void) { return (param(PIECE) + PAGE - 1) & ~(PAGE - 1); }

void program_setup(struct vcpu *cpu) { buffers = alloc(cpu, cpu->count * buffer_bytes()); }

void program_run(struct vcpu *cpu) {
    u8 *buffer = buffers + cpu->index * buffer_bytes();
    for (u64 piece = cpu->index;; piece += cpu->count) {
        u64 turn;
        WAIT_UNTIL((turn = load(&shared.turn)) == piece || turn == ENDED);
        if (turn == ENDED) return;
        u64 bytes = input_read(cpu, buffer, param(PIECE));
        if (bytes == 0) {
            store(&shared.turn, ENDED);
            return;
        }
        output_write(cpu, buffer, bytes);
        shared.bytes += bytes;
        device_write(MARK, shared.bytes);
        store(&shared.turn, piece + 1);
    }
}
