/* What does guac_tcp_connect() do with a descriptor beyond FD_SETSIZE, a refusal, and a server that is silent? */

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

/* Its header includes a "config.h" that is not installed */
int guac_tcp_connect(const char* hostname, const char* port, const int timeout);

/* A socket on a free port of 127.0.0.1, and that port. */
static int bound(char* port, size_t size) {
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t length = sizeof(address);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0 || bind(fd, (struct sockaddr*) &address, sizeof(address))
            || getsockname(fd, (struct sockaddr*) &address, &length))
        return -1;
    snprintf(port, size, "%d", ntohs(address.sin_port));
    return fd;
}

static const char* outcome(int fd) {
    struct sockaddr_in peer;
    socklen_t length = sizeof(peer);
    if (fd < 0)
        return "failed";
    return getpeername(fd, (struct sockaddr*) &peer, &length) ? "not connected" : "connected";
}

int main(void) {

    char listening[16], closed[16], silent[16];
    int server = bound(listening, sizeof(listening));
    if (server < 0 || listen(server, 16) || bound(closed, sizeof(closed)) < 0)
        return 1;

    printf("listening: %s\n", outcome(guac_tcp_connect("127.0.0.1", listening, 5)));
    printf("refusing: %s\n", outcome(guac_tcp_connect("127.0.0.1", closed, 5)));

    /* localhost is ::1 and 127.0.0.1 where there is IPv6: only the latter listens */
    printf("second address: %s\n", outcome(guac_tcp_connect("localhost", listening, 5)));

    /* A full backlog answers nothing */
    int full = bound(silent, sizeof(silent));
    if (full < 0 || listen(full, 0))
        return 1;
    for (int i = 0; i < 3; i++) {
        struct sockaddr_in address;
        socklen_t length = sizeof(address);
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
        getsockname(full, (struct sockaddr*) &address, &length);
        connect(fd, (struct sockaddr*) &address, sizeof(address));
    }
    usleep(100000);
    struct timespec begun, ended;
    clock_gettime(CLOCK_MONOTONIC, &begun);
    const char* result = outcome(guac_tcp_connect("127.0.0.1", silent, 1));
    clock_gettime(CLOCK_MONOTONIC, &ended);
    double took = ended.tv_sec - begun.tv_sec + (ended.tv_nsec - begun.tv_nsec) / 1e9;
    printf("silent: %s after %s\n", result, took >= 0.9 && took < 2.5 ? "1 s" : "another time");
    fflush(stdout);

    /* This comes last, because it ends a libguac that uses select() */
    struct rlimit limit = { 4096, 4096 };
    if (setrlimit(RLIMIT_NOFILE, &limit))
        return 1;
    int fd;
    do {
        fd = open("/dev/null", O_RDONLY);
    } while (fd >= 0 && fd < FD_SETSIZE + 64);
    printf("beyond FD_SETSIZE: %s\n", outcome(guac_tcp_connect("127.0.0.1", listening, 5)));
    return 0;

}
