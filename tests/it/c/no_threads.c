/* What does a display do if some of its threads cannot be started? */

#define _GNU_SOURCE

#include <guacamole/client.h>
#include <guacamole/display.h>

#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>

/* How many more threads can be started */
static int left;

/* libguac calls this function instead of the C library's */
int pthread_create(pthread_t* thread, const pthread_attr_t* attributes, void* (*start)(void*), void* data) {

    int (*create)(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*) = dlsym(RTLD_NEXT, "pthread_create");

    if (left-- <= 0) {
        /* Not a thread: using it crashes */
        memset(thread, 0x5A, sizeof(*thread));
        return EAGAIN;
    }

    return create(thread, attributes, start, data);

}

int main(void) {

    setvbuf(stdout, NULL, _IONBF, 0);
    guac_client* client = guac_client_alloc();

    guac_display* display = guac_display_alloc(client);
    printf("without threads: %s\n", display == NULL ? "no display" : "a display");

    left = 1;
    display = guac_display_alloc(client);
    left = 0;
    guac_display_render_thread* render_thread = guac_display_render_thread_create(display);
    printf("without a render thread: %s\n", client->state == GUAC_CLIENT_RUNNING ? "runs" : "ends");

    guac_display_render_thread_destroy(render_thread);
    guac_display_free(display);
    printf("freed\n");
    return 0;

}
