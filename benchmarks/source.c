/* wrk's many clients, by LD_PRELOAD: binds each connection to the next of COUNT addresses of this machine, and writes
 * that address over PLACEHOLDER, which is as long, wherever a request has it. The addresses are those of client.py,
 * and the first of them is that with the number SOURCE_OFFSET. Each connects to one of the ports in SOURCE_PORTS, the
 * one that client.py takes. With SOURCE_KEYS, a list of texts of the same length, each connection has two of them that
 * are next to each other, and writes them over PLACEHOLDER in turn. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define COUNT 256
#define LENGTH 15
#define PLACEHOLDER "255.255.255.255"

static char sources[65536][LENGTH + 1];
/* What to write over PLACEHOLDER, in the next request and in the one after it. */
static const char *keys[65536][2];

static int port(const char *source) {
    static int ports[64], count;
    unsigned sum = 0;
    if (!count) {
        char *rest = getenv("SOURCE_PORTS");
        int found = 0;
        do ports[found++] = strtol(rest, &rest, 10);
        while (*rest++ == ',' && found < 64);
        count = found;
    }
    while (*source) sum += *source++;
    return ports[sum % count];
}

int connect(int fd, const struct sockaddr *to, socklen_t length) {
    static atomic_uint next;
    int (*original)(int, const struct sockaddr *, socklen_t) = dlsym(RTLD_NEXT, "connect");
    struct sockaddr_in server;
    if (to->sa_family == AF_INET && fd < 65536) {
        const char *list = getenv("SOURCE_KEYS");
        unsigned n = (atoi(getenv("SOURCE_OFFSET")) + next++) % COUNT;
        struct sockaddr_in from = {.sin_family = AF_INET};
        snprintf(sources[fd], sizeof *sources, "127.%u.%u.%u", 100 + n % 16, 100 + n / 16, 100 + n % 100);
        inet_pton(AF_INET, sources[fd], &from.sin_addr);
        setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &(int){1}, sizeof(int));
        if (bind(fd, (struct sockaddr *)&from, sizeof from)) return -1;
        server = *(const struct sockaddr_in *)to;
        server.sin_port = htons(port(sources[fd]));
        to = (struct sockaddr *)&server;
        keys[fd][0] = keys[fd][1] = sources[fd];
        if (list) {
            unsigned pairs = (strlen(list) + 1) / (LENGTH + 1) / 2;
            keys[fd][0] = list + n % pairs * 2 * (LENGTH + 1);
            keys[fd][1] = keys[fd][0] + LENGTH + 1;
        }
    }
    return original(fd, to, length);
}

ssize_t write(int fd, const void *data, size_t length) {
    static ssize_t (*original)(int, const void *, size_t);
    char copy[4096], *place;
    if (!original) original = dlsym(RTLD_NEXT, "write");
    if (length <= sizeof copy && memmem(data, length, PLACEHOLDER, LENGTH)) {
        memcpy(copy, data, length);
        place = memmem(copy, length, PLACEHOLDER, LENGTH);
        memcpy(place, keys[fd][0], LENGTH);
        place = (char *)keys[fd][0], keys[fd][0] = keys[fd][1], keys[fd][1] = place;
        data = copy;
    }
    return original(fd, data, length);
}
