/* A library to preload into guacd: each call of waitpid() by the process with the ID PID adds a byte to $WAITS/PID. */

#define _GNU_SOURCE

#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/types.h>
#include <unistd.h>

pid_t waitpid(pid_t pid, int* status, int options) {
    pid_t (*libcs)(pid_t, int*, int) = dlsym(RTLD_NEXT, "waitpid");
    char path[4096];
    snprintf(path, sizeof(path), "%s/%d", getenv("WAITS"), (int) getpid());
    int fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    if (fd != -1) {
        if (write(fd, ".", 1) != 1)
            abort();
        close(fd);
    }
    return libcs(pid, status, options);
}
