/* A library to preload into guacd: what a connection process that was taken over could do, and a slow network.
 *
 * setpgid() is the first function of these that a connection process calls. The process then sends a signal that does nothing
 * to its parent. It writes the result to $SESSION/signal-PID, and the version of Landlock's interface to $SESSION/landlock-PID.
 * If there is a file $SESSION/orphan, it also starts a process that creates $SESSION/orphan-PID, with its own ID, and ends when
 * that file is removed. */

#define _GNU_SOURCE

#include <dlfcn.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

static void path_of(char* path, size_t size, const char* name, pid_t pid) {
    snprintf(path, size, "%s/%s-%d", getenv("SESSION"), name, (int) pid);
}

static void put(const char* name, pid_t pid, const char* text) {
    char path[4096];
    path_of(path, sizeof(path), name, pid);
    FILE* file = fopen(path, "w");
    if (file != NULL) {
        fputs(text, file);
        fclose(file);
    }
}

int setpgid(pid_t pid, pid_t group) {
    int (*libcs)(pid_t, pid_t) = dlsym(RTLD_NEXT, "setpgid");
    put("signal", getpid(), kill(getppid(), 0) ? strerrorname_np(errno) : "sent");
    char version[32];
    snprintf(version, sizeof(version), "%ld", syscall(SYS_landlock_create_ruleset, NULL, 0, 1));
    put("landlock", getpid(), version);
    char path[4096];
    snprintf(path, sizeof(path), "%s/orphan", getenv("SESSION"));
    if (access(path, F_OK) == 0 && fork() == 0) {
        put("orphan", getpid(), "");
        path_of(path, sizeof(path), "orphan", getpid());
        while (access(path, F_OK) == 0)
            usleep(10000);
        _exit(0);
    }
    return libcs(pid, group);
}

/* With a small buffer, a client that reads nothing soon keeps guacd from sending. */
static int with_a_small_buffer(int fd) {
    int size = 4096;
    if (fd >= 0)
        setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
    return fd;
}

int accept(int fd, struct sockaddr* address, socklen_t* length) {
    int (*libcs)(int, struct sockaddr*, socklen_t*) = dlsym(RTLD_NEXT, "accept");
    return with_a_small_buffer(libcs(fd, address, length));
}

int accept4(int fd, struct sockaddr* address, socklen_t* length, int flags) {
    int (*libcs)(int, struct sockaddr*, socklen_t*, int) = dlsym(RTLD_NEXT, "accept4");
    return with_a_small_buffer(libcs(fd, address, length, flags));
}
