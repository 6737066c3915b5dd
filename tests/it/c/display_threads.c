/* Can several threads use one display at once? They draw, resize, copy, change the cursor, add and free layers, join and leave
 * at random, until the display is stopped, and freed. Prints what was wrong, and nothing otherwise. Its arguments are the number
 * of displays that are used one after another, and the first seed. For a debugger, it aborts where it freezes if the variable
 * DISPLAY_THREADS_ABORT is set. Compiled with libguac's sources, it can also be run under the sanitizers for addresses and for
 * threads. */

#include <guacamole/client.h>
#include <guacamole/display.h>
#include <guacamole/rect.h>
#include <guacamole/socket.h>
#include <guacamole/user.h>

#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* How long one display is used, and within what time each thread must get on, in milliseconds */
#define DURATION 250
#define PATIENCE 20000

#define MAX_SIZE 320
#define JOINERS 3
#define MAX_THREADS 16

/* Stock does not have this. */
void guac_display_sync_pending_users(guac_display* display) __attribute__((weak));

static guac_client* client;
static guac_display* display;
static guac_display_render_thread* render_thread;

/* Whether the threads shall end */
static int stopping;

/* A thread, its random numbers, and how often it has got on */
typedef struct {
    pthread_t thread;
    void (*step)(uint32_t* random);
    uint32_t random;
    unsigned int steps;
    int running;
} worker;

static worker workers[MAX_THREADS];
static int worker_count;

static unsigned int below(uint32_t* random, unsigned int limit) {
    *random = *random * 1664525 + 1013904223;
    return (*random >> 8) % limit;
}

static void rest(unsigned int milliseconds) {
    struct timespec time = { milliseconds / 1000, milliseconds % 1000 * 1000000L };
    nanosleep(&time, NULL);
}

/* Tells what is wrong, and ends the program */
static void fail(const char* message) {
    printf("%s\n", message);
    fflush(stdout);
    _exit(0);
}

/* What a user is sent. Instructions of different threads are not mixed. */
typedef struct {
    pthread_mutex_t lock;
    char instruction[256];
    size_t length;
    /* Whether the last "rect" of each layer has yet to be filled */
    char open[1024];
    int is_guest;
} receiver;

/* The layer of a "rect" or "cfill", as an index into the receiver's list. Indices of buffers are negative. */
static int layer_of(const char* element) {
    const char* value = strchr(element, '.');
    return value != NULL ? (atoi(value + 1) + 512) & 1023 : 0;
}

/* Workers draw into the layers of one display at once. What one draws must not become part of what another one fills. */
static void check_instruction(receiver* received) {
    const char* instruction = received->instruction;
    if (strncmp(instruction, "4.rect,", 7) == 0) {
        int layer = layer_of(instruction + 7);
        if (received->open[layer])
            fail("a rectangle is added to one that another worker is about to fill");
        received->open[layer] = 1;
    }
    else if (strncmp(instruction, "5.cfill,", 8) == 0) {
        const char* layer = strchr(instruction + 8, ',');
        if (layer != NULL)
            received->open[layer_of(layer + 1)] = 0;
    }
}

static ssize_t receive(guac_socket* socket, const void* buffer, size_t count) {
    receiver* received = (receiver*) socket->data;
    const char* current = (const char*) buffer;
    for (size_t i = 0; i < count; i++) {
        if (received->length < sizeof(received->instruction) - 1)
            received->instruction[received->length++] = current[i];
        if (current[i] == ';') {
            received->instruction[received->length] = '\0';
            check_instruction(received);
            received->length = 0;
        }
    }
    return count;
}

static void lock(guac_socket* socket) {
    pthread_mutex_lock(&((receiver*) socket->data)->lock);
}

static void unlock(guac_socket* socket) {
    pthread_mutex_unlock(&((receiver*) socket->data)->lock);
}

static int free_receiver(guac_socket* socket) {
    receiver* received = (receiver*) socket->data;
    pthread_mutex_destroy(&received->lock);
    free(received);
    return 0;
}

static const char* mimetypes[] = { "image/png", "image/jpeg", "image/webp", NULL };

/* Has a user join. Guests are sent the state of the display by the thread that promotes them. */
static guac_user* join(int is_owner) {
    receiver* received = calloc(1, sizeof(receiver));
    pthread_mutex_init(&received->lock, NULL);
    guac_user* user = guac_user_alloc();
    user->client = client;
    user->owner = is_owner;
    user->info.image_mimetypes = mimetypes;
    user->socket = guac_socket_alloc();
    user->socket->data = received;
    user->socket->write_handler = receive;
    user->socket->lock_handler = lock;
    user->socket->unlock_handler = unlock;
    user->socket->free_handler = free_receiver;
    user->active = 1;
    if (guac_client_add_user(client, user, 0, NULL))
        fail("a user cannot join");
    return user;
}

static void leave(guac_user* user) {
    guac_client_remove_user(client, user);
    guac_socket_free(user->socket);
    guac_user_free(user);
}

static int join_pending(guac_client* client) {
    if (guac_display_sync_pending_users != NULL)
        guac_display_sync_pending_users(display);
    else
        guac_display_dup(display, client->pending_socket);
    return 0;
}

static int user_leaves(guac_user* user) {
    guac_display_notify_user_left(display, user);
    return 0;
}

/* Fills a part of a layer with noise, a color, or with what is in another part */
static void draw(guac_display_layer_raw_context* context, uint32_t* random) {
    unsigned int width = guac_rect_width(&context->bounds), height = guac_rect_height(&context->bounds);
    if (width == 0 || height == 0 || context->buffer == NULL)
        return;
    guac_rect rect;
    guac_rect_init(&rect, below(random, width), below(random, height), 1 + below(random, width), 1 + below(random, height));
    guac_rect_constrain(&rect, &context->bounds);
    unsigned int kind = below(random, 3), delta = below(random, rect.top + 1);
    uint32_t color = 0xFF000000 | below(random, 4) * 0x408040;
    for (int y = rect.top; y < rect.bottom; y++) {
        uint32_t* row = (uint32_t*) (context->buffer + y * context->stride);
        uint32_t* source = (uint32_t*) (context->buffer + (y - delta) * context->stride);
        for (int x = rect.left; x < rect.right; x++)
            row[x] = kind == 0 ? 0xFF000000 | below(random, 0xFFFFFF) : kind == 1 ? color : source[x];
    }
    guac_rect_extend(&context->dirty, &rect);
}

/* The buffer that the default layer has, as if by libvncclient. Only one thread changes it. */
static unsigned char* external;

/* Draws as a VNC client does, which keeps the layer open while it does, and changes the buffer when the desktop is resized */
static void draw_desktop(uint32_t* random) {
    guac_display_layer* layer = guac_display_default_layer(display);
    guac_display_layer_raw_context* context = guac_display_layer_open_raw(layer);
    if (external == NULL || below(random, 20) == 0) {
        unsigned int width = 1 + below(random, MAX_SIZE), height = 1 + below(random, MAX_SIZE);
        unsigned char* old = external;
        external = calloc(width * height, 4);
        context->buffer = external;
        context->stride = width * 4;
        guac_rect_init(&context->bounds, 0, 0, width, height);
        context->dirty = context->bounds;
        free(old);
    }
    draw(context, random);
    guac_display_layer_close_raw(layer, context);
    guac_display_render_thread_notify_modified(render_thread);
}

/* Has the display forget that buffer, as RDP does at its end, and tries to render once more */
static void forget_buffer(void) {
    guac_display_layer* layer = guac_display_default_layer(display);
    guac_display_layer_raw_context* context = guac_display_layer_open_raw(layer);
    context->buffer = NULL;
    context->stride = 0;
    guac_display_layer_close_raw(layer, context);
    free(external);
    external = NULL;
    guac_display_end_frame(display);
}

static void change_cursor(uint32_t* random) {
    if (below(random, 2)) {
        guac_display_set_cursor(display, (guac_display_cursor_type) below(random, 4));
        return;
    }
    /* A server may send a cursor of no size */
    guac_display_layer* cursor = guac_display_cursor(display);
    guac_display_layer_resize(cursor, below(random, 4) * 40, below(random, 4) * 40);
    guac_display_layer_raw_context* context = guac_display_layer_open_raw(cursor);
    draw(context, random);
    guac_display_layer_close_raw(cursor, context);
    guac_display_set_cursor_hotspot(display, below(random, 10), below(random, 10));
    guac_display_end_mouse_frame(display);
}

/* Adds a layer or a buffer, draws into it with Cairo and without, and frees it, often before that has been sent */
static void use_layer(uint32_t* random) {
    int opaque = below(random, 2), visible = below(random, 2);
    guac_display_layer* layer = visible ? guac_display_alloc_layer(display, opaque) : guac_display_alloc_buffer(display, opaque);
    for (unsigned int i = below(random, 4); i > 0; i--) {
        guac_display_layer_resize(layer, 1 + below(random, MAX_SIZE), 1 + below(random, MAX_SIZE));
        if (visible) {
            guac_display_layer_move(layer, below(random, 100), below(random, 100));
            guac_display_layer_stack(layer, below(random, 10));
            guac_display_layer_set_opacity(layer, below(random, 256));
            guac_display_layer_set_parent(layer, guac_display_default_layer(display));
        }
        if (below(random, 2)) {
            guac_display_layer_cairo_context* context = guac_display_layer_open_cairo(layer);
            guac_rect rect;
            guac_rect_init(&rect, 0, 0, 1 + below(random, 100), 1 + below(random, 100));
            cairo_rectangle(context->cairo, 0, 0, guac_rect_width(&rect), guac_rect_height(&rect));
            cairo_set_source_rgba(context->cairo, 1, 0, 0, below(random, 2) ? 1 : 0.5);
            cairo_fill(context->cairo);
            guac_rect_constrain(&rect, &context->bounds);
            guac_rect_extend(&context->dirty, &rect);
            guac_display_layer_close_cairo(layer, context);
        }
        else {
            guac_display_layer_raw_context* context = guac_display_layer_open_raw(layer);
            for (int j = 0; j < 3; j++)
                draw(context, random);
            guac_display_layer_close_raw(layer, context);
        }
        if (below(random, 2))
            guac_display_end_frame(display);
        rest(below(random, 5));
    }
    guac_display_free_layer(layer);
}

static void end_frames(uint32_t* random) {
    if (below(random, 2))
        guac_display_render_thread_notify_frame(render_thread);
    else
        guac_display_end_multiple_frames(display, below(random, 3));
    rest(below(random, 10));
}

static void move_mouse(uint32_t* random) {
    int x = below(random, 100), y = below(random, 100), mask = below(random, 2);
    if (below(random, 2))
        guac_display_render_thread_notify_user_moved_mouse(render_thread, NULL, x, y, mask);
    else
        guac_display_notify_user_moved_mouse(display, NULL, x, y, mask);
    rest(below(random, 10));
}

static void join_and_leave(uint32_t* random) {
    guac_user* user = join(0);
    rest(below(random, 20));
    guac_display_notify_user_moved_mouse(display, user, below(random, 100), 0, 0);
    leave(user);
}

static void* work(void* data) {
    worker* self = (worker*) data;
    while (!__atomic_load_n(&stopping, __ATOMIC_RELAXED)) {
        self->step(&self->random);
        __atomic_add_fetch(&self->steps, 1, __ATOMIC_RELAXED);
    }
    __atomic_store_n(&self->running, 0, __ATOMIC_RELAXED);
    return NULL;
}

/* Notices if a thread does not get on. The main thread is the last one. */
static unsigned int main_steps;

static void* watch(void* data) {
    unsigned int seen[MAX_THREADS + 1] = { 0 }, waited[MAX_THREADS + 1] = { 0 };
    for (;;) {
        rest(100);
        for (int i = 0; i <= MAX_THREADS; i++) {
            unsigned int steps = __atomic_load_n(i < MAX_THREADS ? &workers[i].steps : &main_steps, __ATOMIC_RELAXED);
            int runs = i == MAX_THREADS || __atomic_load_n(&workers[i].running, __ATOMIC_RELAXED);
            waited[i] = runs && steps == seen[i] ? waited[i] + 100 : 0;
            seen[i] = steps;
            if (waited[i] >= PATIENCE) {
                if (getenv("DISPLAY_THREADS_ABORT") != NULL)
                    abort();
                fail("the display is frozen");
            }
        }
    }
    return data;
}

static void start(void (*step)(uint32_t*), uint32_t seed) {
    worker* self = &workers[worker_count++];
    self->step = step;
    self->random = seed * 2654435761u + worker_count;
    __atomic_store_n(&self->running, 1, __ATOMIC_RELAXED);
    if (pthread_create(&self->thread, NULL, work, self))
        fail("a thread cannot be started");
}

static int free_display(guac_client* client) {
    guac_display_free(display);
    return client == NULL;
}

/* Uses one display from its beginning to its end */
static void use_display(uint32_t seed) {

    uint32_t random = seed;
    client = guac_client_alloc();
    client->leave_handler = user_leaves;
    guac_user* owner = join(1);
    display = guac_display_alloc(client);
    render_thread = guac_display_render_thread_create(display);
    client->join_pending_handler = join_pending;

    /* A user may join before there is any frame */
    guac_user* first = join(0);
    if (below(&random, 2))
        guac_display_end_frame(display);

    stopping = 0;
    worker_count = 0;
    start(draw_desktop, seed);
    start(change_cursor, seed);
    start(use_layer, seed);
    start(use_layer, seed);
    start(end_frames, seed);
    start(move_mouse, seed);
    for (int i = 0; i < JOINERS; i++)
        start(join_and_leave, seed);

    rest(below(&random, DURATION));
    if (below(&random, 2))
        guac_display_stop(display);
    rest(below(&random, 20));

    __atomic_store_n(&stopping, 1, __ATOMIC_RELAXED);
    for (int i = 0; i < worker_count; i++)
        pthread_join(workers[i].thread, NULL);

    if (below(&random, 2))
        forget_buffer();
    leave(first);
    leave(owner);
    guac_client_stop(client);
    guac_display_render_thread_destroy(render_thread);
    /* A guest who joined last may still be about to be sent the state */
    rest(below(&random, 2) * 10);
    client->free_handler = free_display;
    guac_client_free(client);
    free(external);
    external = NULL;
    __atomic_add_fetch(&main_steps, 1, __ATOMIC_RELAXED);

}

int main(int argc, char** argv) {
    pthread_t watchdog;
    if (argc < 3 || pthread_create(&watchdog, NULL, watch, NULL))
        return 1;
    int seed = atoi(argv[2]);
    for (int i = 0; i < atoi(argv[1]); i++)
        use_display(seed + i);
    return 0;
}
