/* A plugin for guacd whose only argument is called ARGUMENT. guacd calls PREPARE before it forks connections, unless that is
 * not defined. The plugin crashes as it is loaded if CRASHES is defined. */

#include <guacamole/client.h>

#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

#ifndef ARGUMENT
#define ARGUMENT "argument"
#endif

static const char* arguments[] = { ARGUMENT, NULL };

/* How many times PREPARE was called. */
static int calls;

static inline void* rest(void* data) {
    for (;;)
        pause();
    return data;
}

static inline int succeed(void) {
    return 0;
}

static inline int succeed_slowly(void) {
    sleep(2);
    return 0;
}

/* Each fork server serves one session. */
static inline int succeed_once(void) {
    return calls > 1;
}

static inline int fail(void) {
    return 1;
}

static inline int crash(void) {
    abort();
}

static inline int hang(void) {
    rest(NULL);
    return 0;
}

static inline int start_a_thread(void) {
    pthread_t thread;
    return pthread_create(&thread, NULL, rest, NULL);
}

#ifdef PREPARE
int guac_client_prepare(void) {
    calls++;
    return PREPARE();
}
#endif

#ifdef CRASHES
__attribute__((constructor)) static void crash_at_once(void) {
    crash();
}
#endif

int guac_client_init(guac_client* client) {
    client->args = arguments;
    return 0;
}
