// Which job, and how it ends.
#define _GNU_SOURCE
#include "work.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/reboot.h>
#include <sys/wait.h>
#include <unistd.h>

static void job_boot(void) {}

static void job_reboot(void) { system_stop(RB_AUTOBOOT); }

static void job_panic(void) {
    if (!is_init()) fail("only a guest can panic");
    output_drain();
    write_file("/proc/sysrq-trigger", "c");
}

static void job_bench(void) {
    job_compute();
    job_files();
}

void job_mixed(void) {
    load_start();
    job_serve();
    load_stop();
}

// The shell gets the console the kernel uses as its controlling terminal, for Ctrl-C.
static void shell_console(void) {
    char path[64] = "/dev/";
    int active = open("/sys/class/tty/console/active", O_RDONLY | O_CLOEXEC);
    ssize_t bytes = active < 0 ? 0 : read(active, path + 5, sizeof path - 6);
    path[bytes > 0 ? 4 + bytes : 5] = 0; // without the line's end
    char *last = strrchr(path, ' ');
    if (last) memmove(path + 5, last + 1, strlen(last));
    setsid();
    int console = open(path, O_RDWR);
    if (console < 0) return;
    ioctl(console, TIOCSCTTY, 1);
    for (int i = 0; i < 3; i++) dup2(console, i);
    if (console > 2) close(console);
}

static void job_shell(void) {
    char *const arguments[] = {"/bin/busybox", "sh", "-l", NULL};
    if (is_init()) shell_console();
    int child = spawn(arguments), status;
    while (waitpid(-1, &status, 0) != child) continue;
}

static const struct {
    const char *name;
    void (*run)(void);
} jobs[] = {
    {"boot", job_boot},   {"compute", job_compute}, {"files", job_files}, {"bench", job_bench},   {"serve", job_serve},
    {"mixed", job_mixed}, {"panic", job_panic},     {"reboot", job_reboot}, {"shell", job_shell},
};

int main(int count, char **values) {
    if (is_init()) system_start();
    else args_from_argv(count, values);
    say("samsara: user space is up");
    const char *name = arg("job", "shell");
    for (size_t i = 0; i < sizeof jobs / sizeof *jobs; i++) {
        if (strcmp(name, jobs[i].name)) continue;
        jobs[i].run();
        system_stop(RB_POWER_OFF);
    }
    fail("job=%s is not one of boot compute files bench serve mixed panic reboot shell", name);
}
