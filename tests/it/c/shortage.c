/* A library to preload into guacd: threads, processes, sockets and copies of strings of libguac, and what epoll watches, cannot
 * be had while a file exists.
 *
 * $SHORTAGE/threads-PID, $SHORTAGE/forks-PID and $SHORTAGE/watches-PID are for the process with that ID.
 * $SHORTAGE/threads-below-PID, $SHORTAGE/sockets-below-PID and $SHORTAGE/copies-below-PID are for its children. */

#define _GNU_SOURCE

#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <unistd.h>

static int is_short_of(const char* what, pid_t pid) {
    char path[4096];
    snprintf(path, sizeof(path), "%s/%s-%d", getenv("SHORTAGE"), what, (int) pid);
    return access(path, F_OK) == 0;
}

int pthread_create(pthread_t* thread, const pthread_attr_t* attributes, void* (*start)(void*), void* data) {
    int (*libcs)(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*) = dlsym(RTLD_NEXT, "pthread_create");
    if (is_short_of("threads", getpid()) || is_short_of("threads-below", getppid()))
        return EAGAIN;
    return libcs(thread, attributes, start, data);
}

void* guac_socket_open(int fd) {
    void* (*libguacs)(int) = dlsym(RTLD_NEXT, "guac_socket_open");
    return is_short_of("sockets-below", getppid()) ? NULL : libguacs(fd);
}

char* guac_strdup(const char* string) {
    char* (*libguacs)(const char*) = dlsym(RTLD_NEXT, "guac_strdup");
    return is_short_of("copies-below", getppid()) ? NULL : libguacs(string);
}

pid_t fork(void) {
    pid_t (*libcs)(void) = dlsym(RTLD_NEXT, "fork");
    if (is_short_of("forks", getpid())) {
        errno = EAGAIN;
        return -1;
    }
    return libcs();
}

int epoll_ctl(int epfd, int operation, int fd, struct epoll_event* event) {
    int (*libcs)(int, int, int, struct epoll_event*) = dlsym(RTLD_NEXT, "epoll_ctl");
    if (operation == EPOLL_CTL_ADD && is_short_of("watches", getpid())) {
        errno = ENOSPC;
        return -1;
    }
    return libcs(epfd, operation, fd, event);
}
