/* A library to preload into guacd: the fork server takes 2 seconds to start while $SLOW_START/slow exists. */

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

__attribute__((constructor)) static void start(void) {
    char path[4096];
    snprintf(path, sizeof(path), "%s/slow", getenv("SLOW_START"));
    if (getenv("GUACD_FORK_SERVER_FD") != NULL && access(path, F_OK) == 0)
        sleep(2);
}
