// Numbered lines from the vCPUs in turn: a gap or a repetition in what was released is plain to see.
#include "guest.h"

enum { N, RUN, DELAY };
struct param program_params[] = {
    NUMBER("n", 1000, 1, 999999),
    NUMBER("run", 1, 1, 1000),         // lines before the turn passes on
    NUMBER("delay", 0, 0, 1ul << 30), // pauses before every line
    PARAMS_END,
};

static struct {
    u64 line;
} OWN_PAGE next;

void program_run(struct vcpu *cpu) {
    u64 n = param(N), run = param(RUN);
    for (u64 start = cpu->index * run; start < n; start += cpu->count * run) {
        WAIT_UNTIL(load(&next.line) == start);
        u64 end = n - start < run ? n : start + run;
        for (u64 line = start; line < end; line++) {
            for (u64 i = 0; i < param(DELAY); i++) __builtin_ia32_pause();
            say(cpu, "line %06lu\n", line);
            if (line % 64 == 0 || line == n - 1) device_write(MARK, line + 1);
        }
        store(&next.line, end);
        publish();
    }
}
