// eth0 and lo get their addresses by ioctl: each program started instead would cost half a second.
#include "work.h"

#include <arpa/inet.h>
#include <errno.h>
#include <net/if.h>
#include <net/route.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

static void set_address(struct sockaddr *to, in_addr_t address) {
    struct sockaddr_in value = {.sin_family = AF_INET, .sin_addr.s_addr = address};
    memcpy(to, &value, sizeof value);
}

static void interface_start(int control, const char *name, in_addr_t address, in_addr_t mask) {
    struct ifreq request = {0};
    strncpy(request.ifr_name, name, IFNAMSIZ - 1);
    set_address(&request.ifr_addr, address);
    if (ioctl(control, SIOCSIFADDR, &request)) fail("%s: no address: %s", name, strerror(errno));
    set_address(&request.ifr_netmask, mask);
    if (ioctl(control, SIOCSIFNETMASK, &request)) fail("%s: no netmask: %s", name, strerror(errno));
    request.ifr_flags = IFF_UP | IFF_RUNNING;
    if (ioctl(control, SIOCSIFFLAGS, &request)) fail("%s: not up: %s", name, strerror(errno));
}

static void route_start(int control, const char *gateway) {
    struct in_addr address;
    if (!inet_aton(gateway, &address)) fail("gw=%s is not an address", gateway);
    struct rtentry route = {.rt_flags = RTF_UP | RTF_GATEWAY};
    set_address(&route.rt_gateway, address.s_addr);
    set_address(&route.rt_dst, 0);
    set_address(&route.rt_genmask, 0);
    if (ioctl(control, SIOCADDRT, &route)) fail("no route by %s: %s", gateway, strerror(errno));
}

void network_start(void) {
    if (!is_init()) return;
    char text[64];
    strncpy(text, arg("ip", ""), sizeof text - 1);
    text[sizeof text - 1] = 0;
    char *slash = strchr(text, '/');
    u64 bits = slash ? strtoull(slash + 1, NULL, 10) : 24;
    if (slash) *slash = 0;
    struct in_addr address;
    if (!inet_aton(text, &address) || bits < 1 || bits > 32) fail("ip=%s is not ADDRESS/BITS", arg("ip", ""));
    int control = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (control < 0) fail("no sockets: %s", strerror(errno));
    interface_start(control, "lo", htonl(INADDR_LOOPBACK), htonl(0xff000000));
    interface_start(control, "eth0", address.s_addr, htonl((uint32_t)(~0ul << (32 - bits))));
    const char *gateway = arg("gw", NULL);
    if (gateway) route_start(control, gateway);
    close(control);
}
