// Lanes of numbers, shared out over one thread a CPU. In every round each lane is computed from itself and from its
// neighbour's last round, so threads meet after each round. The answer does not depend on the number of threads.
#include "work.h"

enum { LANES = 8 };

static u64 lanes[2][LANES][LANE_WORDS] OWN_PAGE;
static pthread_barrier_t meeting;
static struct {
    pthread_mutex_t lock;
    u64 turns; // under the lock
    _Atomic u64 sum;
} OWN_PAGE shared = {.lock = PTHREAD_MUTEX_INITIALIZER};
static u64 rounds, steps, workers;

static void compute_round(u64 round, u64 worker) {
    u64(*from)[LANE_WORDS] = lanes[round & 1];
    u64(*to)[LANE_WORDS] = lanes[~round & 1];
    for (u64 lane = worker; lane < LANES; lane += workers) {
        lane_next(to[lane], from[lane], from[(lane + 1) % LANES], steps);
        atomic_fetch_add(&shared.sum, to[lane][round % LANE_WORDS]);
        pthread_mutex_lock(&shared.lock);
        shared.turns++;
        pthread_mutex_unlock(&shared.lock);
    }
}

static void *compute(void *argument) {
    u64 worker = (u64)argument;
    pin_to(worker);
    for (u64 round = 0; round < rounds; round++) {
        compute_round(round, worker);
        pthread_barrier_wait(&meeting);
        if (worker == 0 && (round + 1) * 8 / rounds != round * 8 / rounds)
            say("samsara: computed %lu/8", (round + 1) * 8 / rounds);
    }
    return NULL;
}

void job_compute(void) {
    rounds = number("rounds", 64, 1, 1u << 30);
    steps = number("steps", 1000, 1, 1u << 30);
    workers = number("workers", cpu_count(), 1, LANES);
    for (u64 lane = 0; lane < LANES; lane++) lane_start(lanes[0][lane], lane);
    pthread_barrier_init(&meeting, NULL, (unsigned)workers);
    pthread_t threads[LANES];
    for (u64 i = 1; i < workers; i++) start_thread(&threads[i], compute, (void *)i);
    compute((void *)0);
    for (u64 i = 1; i < workers; i++) pthread_join(threads[i], NULL);
    if (shared.turns != rounds * LANES) fail("%lu turns, not %lu", shared.turns, rounds * LANES);
    u64 answer = atomic_load(&shared.sum);
    for (u64 lane = 0; lane < LANES; lane++)
        for (u64 i = 0; i < LANE_WORDS; i++) answer = fold(answer, lanes[rounds & 1][lane][i]);
    say("answer: %016lx", answer);
}
