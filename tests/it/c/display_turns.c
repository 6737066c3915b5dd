/* One thread after another uses a display, in an order that shows what would otherwise depend on chance. `display_turns clear`
 * prints who clears a layer with transparency before it is drawn, and whether others do at the same time, `stop` whether a user who joins waits for a display that is being
 * stopped, `render` within how many milliseconds a render thread ends that collects what belongs to a frame, at best and as a
 * median, and `many` whether a frame can have more operations than the queue of a display holds. */

#include "config.h"

#include "display-priv.h"

#include <guacamole/client.h>
#include <guacamole/display.h>
#include <guacamole/flag.h>
#include <guacamole/rect.h>
#include <guacamole/socket.h>
#include <guacamole/timestamp.h>

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "sleeps.h"

static guac_display* display;

/* Whether the threads that draw are kept from sending any image, and whether one has tried */
static pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
static volatile int has_tried;

/* The thread that ends frames, who has cleared the layer, and how many frames have ended */
static pthread_t main_thread;
static volatile int cleared_by_main, cleared_by_workers, frames;

/* How many threads have sent the first of the two instructions that clear an area, and whether these were several at once */
static int clearing, at_once;

/* Receives what is sent to users. Each instruction is sent by one call at least. */
static ssize_t receive(guac_socket* socket, const void* buf, size_t count) {
    static __thread char last[64];
    (void) socket;
    size_t length = strlen(last), added = count < sizeof(last) - 1 - length ? count : sizeof(last) - 1 - length;
    memcpy(last + length, buf, added);
    last[length + added] = '\0';
    if (strncmp(last, "3.img,", 6) == 0 && !has_tried) {
        has_tried = 1;
        pthread_mutex_lock(&gate);
        pthread_mutex_unlock(&gate);
    }
    if (memchr(buf, ';', count) != NULL) {
        /* The layer is the first one. Copies of layers are cleared at the end of a frame. */
        const char* layer = strncmp(last, "5.cfill,", 8) == 0 ? strchr(last + 8, ',') : NULL;
        if (layer != NULL && strncmp(layer, ",1.1,", 5) == 0) {
            if (pthread_equal(pthread_self(), main_thread))
                cleared_by_main = 1;
            else
                cleared_by_workers = 1;
            __atomic_sub_fetch(&clearing, 1, __ATOMIC_SEQ_CST);
        }
        if (strncmp(last, "4.rect,1.1,", 11) == 0) {
            if (__atomic_add_fetch(&clearing, 1, __ATOMIC_SEQ_CST) > 1)
                at_once = 1;
            else if (!pthread_equal(pthread_self(), main_thread))
                usleep(300000);
        }
        if (strncmp(last, "4.sync,", 7) == 0)
            frames++;
        last[0] = '\0';
    }
    return count;
}

static guac_client* start(void) {
    guac_client* client = guac_client_alloc();
    client->socket = guac_socket_alloc();
    client->socket->write_handler = receive;
    main_thread = pthread_self();
    display = guac_display_alloc(client);
    return client;
}

static void wait_for(volatile int* value) {
    while (!*value)
        usleep(1000);
}

/* Changes two pixels in each second cell of a layer of this many, such that nothing but an image can show that */
static void draw(guac_display_layer* layer, int cells) {
    guac_display_layer_resize(layer, cells * 64, 64);
    guac_display_layer_raw_context* context = guac_display_layer_open_raw(layer);
    for (int x = 0; x < cells; x += 2) {
        guac_rect rect;
        guac_rect_init(&rect, x * 64, 0, 2, 1);
        uint32_t* row = (uint32_t*) context->buffer;
        row[x * 64] = 0xFF000000 + x + 1;
        row[x * 64 + 1] = 0xFF800000 + x + 1;
        guac_rect_extend(&context->dirty, &rect);
    }
    guac_display_layer_close_raw(layer, context);
}

static void clear(void) {
    start();
    draw(guac_display_alloc_layer(display, 0), 8);
    guac_display_end_frame(display);
    wait_for(&frames);
    printf("%s\n", at_once ? "workers clear at once" : cleared_by_workers ? "one worker clears at a time" : cleared_by_main ? "the thread that ends the frame clears" : "nobody clears");
}

static volatile pid_t joining;
static volatile int has_joined;

static void* join(void* data) {
    joining = syscall(SYS_gettid);
    guac_socket* socket = guac_socket_alloc();
    guac_display_dup(display, socket);
    guac_socket_free(socket);
    has_joined = 1;
    return data;
}

static volatile pid_t stopping;

static void* stop_display(void* data) {
    stopping = syscall(SYS_gettid);
    guac_display_stop(display);
    return data;
}

static void stop(void) {
    pthread_t joiner, stopper;
    start();
    pthread_mutex_lock(&gate);
    draw(guac_display_default_layer(display), 8);
    guac_display_end_frame(display);
    wait_for(&has_tried);
    pthread_create(&joiner, NULL, join, NULL);
    while (joining == 0 || !sleeps(joining))
        usleep(1000);
    pthread_create(&stopper, NULL, stop_display, NULL);
    while (stopping == 0 || !sleeps(stopping))
        usleep(1000);
    for (int i = 0; i < 300 && !has_joined; i++)
        usleep(10000);
    /* Stock may wait for ever, even once the image is sent */
    printf("%s\n", has_joined ? "joins at once" : "waits");
}

/* The clock of the machine, as libguac's may be rounded */
static int64_t milliseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000LL + now.tv_nsec / 1000000;
}

static int compare(const void* a, const void* b) {
    return *(const int*) a - *(const int*) b;
}

static void render(void) {
    enum { COUNT = 21 };
    int times[COUNT];
    start();
    for (int i = 0; i < COUNT; i++) {
        guac_display_render_thread* thread = guac_display_render_thread_create(display);
        guac_display_render_thread_notify_modified(thread);
        /* Once it has seen that, it waits for more */
        int is_seen = 0;
        while (!is_seen) {
            guac_flag_lock(&thread->state);
            is_seen = !(thread->state.value & GUAC_DISPLAY_RENDER_THREAD_STATE_FRAME_MODIFIED);
            guac_flag_unlock(&thread->state);
        }
        int64_t since = milliseconds();
        guac_display_render_thread_destroy(thread);
        times[i] = milliseconds() - since;
    }
    qsort(times, COUNT, sizeof(int), compare);
    printf("%i %i\n", times[0], times[COUNT / 2]);
}

static void freeze(int signal) {
    static const char message[] = "freezes\n";
    (void) signal;
    if (write(STDOUT_FILENO, message, sizeof(message) - 1)) {}
    _exit(0);
}

static void many(void) {
    start();
    display->ops.max_items = 8;
    draw(guac_display_default_layer(display), 64);
    draw(guac_display_alloc_layer(display, 0), 64);
    guac_display_end_frame(display);
    wait_for(&frames);
    printf("draws\n");
    fflush(stdout);
}

int main(int argc, char** argv) {
    const char* what = argc > 1 ? argv[1] : "";
    signal(SIGALRM, freeze);
    alarm(20);
    if (strcmp(what, "clear") == 0)
        clear();
    else if (strcmp(what, "stop") == 0)
        stop();
    else if (strcmp(what, "render") == 0)
        render();
    else if (strcmp(what, "many") == 0)
        many();
    fflush(stdout);
    _exit(0);
}
