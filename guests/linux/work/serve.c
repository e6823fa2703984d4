// The service: any number of clients up to MAX_CLIENTS, one thread, answers in the order of the lines. What all
// clients set between two polls goes to the disk together, and only then is any of them answered.
#define _GNU_SOURCE
#include "work.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MAX_CLIENTS = 64, REDIS_PORT = 6379, REDIS_START_MS = 180000 };

struct client {
    int socket; // -1: free
    bool closing;
    size_t in_bytes, out_bytes;
    char in[2048], out[4096];
};

static struct client clients[MAX_CLIENTS];
static struct pollfd polled[MAX_CLIENTS + 1]; // the last one listens
static bool stop_asked;

static struct sockaddr_in local(in_addr_t address, u64 port) {
    return (struct sockaddr_in){
        .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(address)};
}

static int listen_on(u64 port) {
    int socket_ = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), on = 1;
    struct sockaddr_in address = local(INADDR_ANY, port);
    setsockopt(socket_, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(socket_, (struct sockaddr *)&address, sizeof address) || listen(socket_, MAX_CLIENTS))
        fail("cannot listen on port %lu: %s", port, strerror(errno));
    return socket_;
}

static void client_accept(int listener) {
    int socket_ = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC), on = 1;
    if (socket_ < 0) return;
    setsockopt(socket_, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    for (struct client *client = clients; client < clients + MAX_CLIENTS; client++) {
        if (client->socket >= 0) continue;
        client->socket = socket_;
        client->closing = false;
        client->in_bytes = client->out_bytes = 0;
        return;
    }
    close(socket_);
}

static void client_close(struct client *client) {
    close(client->socket);
    client->socket = -1;
}

static void client_read(struct client *client) {
    size_t room = sizeof client->in - client->in_bytes;
    if (!room) return;
    ssize_t bytes = read(client->socket, client->in + client->in_bytes, room);
    if (bytes > 0) client->in_bytes += (size_t)bytes;
    else if (bytes == 0 || (errno != EAGAIN && errno != EINTR)) client->closing = true;
}

// Answers whole lines as long as there is room.
static void client_answer(struct client *client) {
    size_t used = 0;
    char *end;
    while ((end = memchr(client->in + used, '\n', client->in_bytes - used))) {
        if (sizeof client->out - client->out_bytes < ANSWER_BYTES || !store_has_room()) break;
        char *answer = client->out + client->out_bytes;
        *end = 0;
        if (end > client->in + used && end[-1] == '\r') end[-1] = 0;
        stop_asked |= protocol_answer(client->in + used, answer);
        client->out_bytes += strlen(answer);
        used = (size_t)(end - client->in) + 1;
    }
    client->in_bytes -= used;
    memmove(client->in, client->in + used, client->in_bytes);
    if (!end && client->in_bytes >= LINE_BYTES) client->closing = true; // no line is this long
}

// A line that found no room: nothing will wake the poll for it.
static bool client_has_more(const struct client *client) {
    return client->socket >= 0 && !client->out_bytes && memchr(client->in, '\n', client->in_bytes);
}

static void client_write(struct client *client) {
    ssize_t bytes = write(client->socket, client->out, client->out_bytes);
    if (bytes < 0) {
        if (errno != EAGAIN && errno != EINTR) client_close(client);
        return;
    }
    client->out_bytes -= (size_t)bytes;
    memmove(client->out, client->out + bytes, client->out_bytes);
}

// Waits for clients; with `wait` false it only looks.
static void poll_clients(int listener, bool wait) {
    for (size_t i = 0; i < MAX_CLIENTS; i++) {
        short writing = clients[i].out_bytes ? POLLOUT : 0;
        polled[i] = (struct pollfd){.fd = clients[i].socket, .events = writing ? writing : POLLIN};
    }
    polled[MAX_CLIENTS] = (struct pollfd){.fd = listener, .events = POLLIN};
    if (poll(polled, MAX_CLIENTS + 1, wait ? -1 : 0) < 0 && errno != EINTR) fail("poll: %s", strerror(errno));
}

static bool serve_once(int listener, bool wait) {
    bool left_over = false;
    poll_clients(listener, wait);
    if (polled[MAX_CLIENTS].revents) client_accept(listener);
    for (size_t i = 0; i < MAX_CLIENTS; i++) {
        struct client *client = &clients[i];
        if (client->socket < 0) continue;
        if (polled[i].fd == client->socket && polled[i].revents & (POLLIN | POLLHUP | POLLERR)) client_read(client);
        client_answer(client);
    }
    store_commit();
    for (size_t i = 0; i < MAX_CLIENTS; i++) {
        struct client *client = &clients[i];
        if (client->socket >= 0 && client->out_bytes) client_write(client);
        if (client->socket >= 0 && client->closing) client_close(client);
        left_over |= client_has_more(client);
    }
    return left_over;
}

static bool answers(u64 port) {
    int socket_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = local(INADDR_LOOPBACK, port);
    bool yes = !connect(socket_, (struct sockaddr *)&address, sizeof address);
    close(socket_);
    return yes;
}

// Redis with every write synced before it is acknowledged; in initrd-redis.cpio only.
static int redis_start(const char *folder) {
    char data[256];
    snprintf(data, sizeof data, "%s/redis", folder);
    mkdir(data, 0755);
    char *const arguments[] = {
        "/usr/bin/redis-server", "--bind", "0.0.0.0", "--protected-mode", "no", "--loglevel", "warning",
        "--dir", data, "--save", "", "--appendonly", "yes", "--appendfsync", "always", NULL};
    if (is_init()) write_file("/proc/sys/vm/overcommit_memory", "1"); // it forks to rewrite its file
    int child = spawn(arguments);
    for (u64 waited = 0; !answers(REDIS_PORT); waited += 200) {
        if (waitpid(child, NULL, WNOHANG) == child) fail("redis-server ended");
        if (waited >= REDIS_START_MS) fail("redis-server does not answer");
        sleep_ms(200);
    }
    return child;
}

void job_serve(void) {
    signal(SIGPIPE, SIG_IGN);
    const char *folder = data_mount();
    network_start();
    store_open(folder);
    int redis = number("redis", 0, 0, 1) ? redis_start(folder) : 0;
    for (size_t i = 0; i < MAX_CLIENTS; i++) clients[i].socket = -1;
    int listener = listen_on(number("port", 7000, 1, 65535));
    say("samsara: serving");
    for (bool left_over = false; !stop_asked;) left_over = serve_once(listener, !left_over);
    say("samsara: stopping");
    store_close();
    if (redis && !kill(redis, SIGTERM)) waitpid(redis, NULL, 0);
}
