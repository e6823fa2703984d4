// The one program of the Linux test guest. As process 1 it is the guest's init: it mounts what is needed, does the
// job named on the kernel command line (job=NAME) and powers off. As any other process it does the same job on the
// host, with the arguments it is given, so that a test can compare a guest's answer with the host's.
#pragma once

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef uint8_t u8;
typedef uint64_t u64;

#define PAGE 4096
#define OWN_PAGE __attribute__((aligned(PAGE)))
#define PRINTS __attribute__((format(printf, 1, 2)))

enum { MAX_CPUS = 16 };

// Arguments (args.c): name=value, from /proc/cmdline or the program's own.
void args_from_file(const char *path);
void args_from_argv(int count, char **values);
const char *arg(const char *name, const char *fallback);
// A number from `least` to `most`; anything else ends the job.
u64 number(const char *name, u64 fallback, u64 least, u64 most);

// The system (system.c).
bool is_init(void);
void system_start(void);
void system_stop(int how) __attribute__((noreturn)); // `how` is a reboot(2) command; plain exit on the host
void say(const char *format, ...) PRINTS; // one line, in one write
void fail(const char *format, ...) PRINTS __attribute__((noreturn)); // "wrong: ...", and stop
void output_drain(void); // what was said has left the guest
void write_file(const char *path, const char *text);
const char *data_mount(void); // mounts the disk, once; answers the folder
void data_unmount(void);
u64 cpu_count(void);
u64 clock_ns(int clock);
void sleep_ms(u64 ms);
void start_thread(pthread_t *thread, void *(*run)(void *), void *argument);
void pin_to(u64 cpu); // the calling thread
int spawn(char *const arguments[]); // a program of Debian's, kept from using AVX; answers its process id

// The network (network.c): eth0 gets the address of the argument ip=A.B.C.D/N.
void network_start(void);

// Numbers (mix.c).
u64 mix(u64 value, u64 steps);       // `steps` of xorshift64
u64 fold(u64 sum, u64 value);        // order matters
enum { LANE_WORDS = PAGE / 8 };
void lane_start(u64 lane[LANE_WORDS], u64 index);
void lane_next(u64 to[LANE_WORDS], const u64 own[LANE_WORDS], const u64 other[LANE_WORDS], u64 steps);

// The store (store.c): numbered values in an append-only file.
enum { STORE_KEYS = 16384, STORE_VALUE_BYTES = 32 };
void store_open(const char *folder);
bool store_has_room(void);
void store_set(u64 key, const char *value); // `value` is shorter than STORE_VALUE_BYTES
const char *store_value(u64 key);           // NULL when never set
u64 store_count(void);                      // values ever set
void store_commit(void);                    // returns when all that was set is on the disk
void store_close(void);

// The line protocol (protocol.c): appends the answer to `line` to `answer`. Says if the guest is to stop.
enum { LINE_BYTES = 128, ANSWER_BYTES = 256 };
bool protocol_answer(char *line, char answer[ANSWER_BYTES]);

// The background load of `mixed` (load.c).
void load_start(void);
void load_stop(void); // no longer writes to the disk
void load_stats(char answer[ANSWER_BYTES]);

// Jobs.
void job_compute(void);
void job_files(void);
void job_serve(void);
void job_mixed(void);
