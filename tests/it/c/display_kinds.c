/* Which kinds of images is a user sent? Its arguments are a scene, "text" or "video", whether processors are "short" or "idle", and
 * the kinds that the user supports. Prints how many images of each kind there were while the scene changed, and after that, while
 * it stood still. */

#define _GNU_SOURCE

#include <guacamole/client.h>
#include <guacamole/display.h>
#include <guacamole/rect.h>
#include <guacamole/socket.h>
#include <guacamole/user.h>

#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define WIDTH 320
#define HEIGHT 256

/* How many frames the scene has, how long each is, and how long it stands still afterwards, in milliseconds */
#define FRAMES 40
#define FRAME 50
#define STILL 2000

/* Stock does not have this. */
void guac_display_sync_pending_users(guac_display* display) __attribute__((weak));

static guac_display* display;
static int is_short;

/* Tells how long a thread has run and waited, in place of the kernel, and opens other files. */
int open(const char* path, int flags, ...) {
    static int calls;
    va_list arguments;
    va_start(arguments, flags);
    mode_t mode = flags & O_CREAT ? va_arg(arguments, mode_t) : 0;
    va_end(arguments);
    if (strcmp(path, "/proc/thread-self/schedstat") != 0)
        return syscall(SYS_openat, AT_FDCWD, path, flags, mode);
    long count = __atomic_add_fetch(&calls, 1, __ATOMIC_RELAXED);
    int file = memfd_create("schedstat", 0);
    dprintf(file, "%ld %ld %ld\n", count * 10000000, is_short ? count * 30000000 : 0, count);
    lseek(file, 0, SEEK_SET);
    return file;
}

static pthread_mutex_t lock;
static char instruction[256];
static size_t length;
static int syncs, images[3];
static const char* kinds[] = { "png", "jpeg", "webp" };

static ssize_t receive(guac_socket* socket, const void* buffer, size_t count) {
    (void) socket;
    const char* current = (const char*) buffer;
    for (size_t i = 0; i < count; i++) {
        if (length < sizeof(instruction) - 1)
            instruction[length++] = current[i];
        if (current[i] != ';')
            continue;
        instruction[length] = '\0';
        length = 0;
        if (strncmp(instruction, "4.sync,", 7) == 0)
            __atomic_add_fetch(&syncs, 1, __ATOMIC_RELAXED);
        for (int j = 0; j < 3 && strncmp(instruction, "3.img,", 6) == 0; j++)
            if (strstr(instruction, kinds[j]) != NULL)
                __atomic_add_fetch(&images[j], 1, __ATOMIC_RELAXED);
    }
    return count;
}

static void lock_instructions(guac_socket* socket) {
    (void) socket;
    pthread_mutex_lock(&lock);
}

static void unlock_instructions(guac_socket* socket) {
    (void) socket;
    pthread_mutex_unlock(&lock);
}

static int join_pending(guac_client* client) {
    if (guac_display_sync_pending_users != NULL)
        guac_display_sync_pending_users(display);
    else
        guac_display_dup(display, client->pending_socket);
    return 0;
}

static uint32_t seed = 1;

static unsigned int below(unsigned int limit) {
    seed = seed * 1664525 + 1013904223;
    return (seed >> 8) % limit;
}

/* Glyphs with soft edges, of 8 by 16 pixels, of which half are blank lines and margins */
static void draw_text(guac_display_layer_raw_context* context) {
    for (int y = 0; y < HEIGHT; y++)
        for (int x = 0; x < WIDTH; x++)
            ((uint32_t*) (context->buffer + y * context->stride))[x] = 0xFFFFFFFF;
    for (int y = 0; y < HEIGHT; y += 16)
        for (int x = 0; x < WIDTH; x += 8)
            for (int stroke = 0; stroke < 4; stroke++) {
                int from = y + 2 + below(6), to = from + 2 + below(5), at = x + below(6);
                for (int i = from; i < to; i++) {
                    uint32_t* row = (uint32_t*) (context->buffer + i * context->stride);
                    row[at] = 0xFF000000;
                    row[at + 1] = 0xFF808080 + below(3) * 0x101010;
                }
            }
}

static void draw_video(guac_display_layer_raw_context* context, int frame) {
    for (int y = 0; y < HEIGHT; y++)
        for (int x = 0; x < WIDTH; x++)
            ((uint32_t*) (context->buffer + y * context->stride))[x] = 0xFF000000
                | ((x / 2 + frame * 3 + below(4)) & 0xFF) << 16 | ((y / 2 + below(4)) & 0xFF) << 8 | ((x + y + frame) / 4 & 0xFF);
}

static void show(int frame, int is_video) {
    guac_display_layer* desktop = guac_display_default_layer(display);
    guac_display_layer_raw_context* context = guac_display_layer_open_raw(desktop);
    if (is_video)
        draw_video(context, frame);
    else
        draw_text(context);
    guac_rect_init(&context->dirty, 0, 0, WIDTH, HEIGHT);
    guac_display_layer_close_raw(desktop, context);
}

static void print(const char* when) {
    printf("%s:", when);
    for (int i = 0; i < 3; i++)
        printf(" %s %i", kinds[i], __atomic_exchange_n(&images[i], 0, __ATOMIC_RELAXED));
    printf("\n");
}

int main(int argc, char** argv) {

    if (argc < 4)
        return 1;
    int is_video = strcmp(argv[1], "video") == 0;
    is_short = strcmp(argv[2], "short") == 0;
    alarm(60);

    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_RECURSIVE);
    pthread_mutex_init(&lock, &attributes);

    guac_client* client = guac_client_alloc();
    guac_user* user = guac_user_alloc();
    user->client = client;
    user->owner = 1;
    user->active = 1;
    user->info.image_mimetypes = (const char**) argv + 3;
    user->socket = guac_socket_alloc();
    user->socket->write_handler = receive;
    user->socket->lock_handler = lock_instructions;
    user->socket->unlock_handler = unlock_instructions;
    display = guac_display_alloc(client);
    guac_display_render_thread* render_thread = guac_display_render_thread_create(display);
    client->join_pending_handler = join_pending;
    if (guac_client_add_user(client, user, 0, NULL))
        return 1;

    /* The owner has joined once they have been sent the state */
    guac_display_layer_resize(guac_display_default_layer(display), WIDTH, HEIGHT);
    guac_display_end_frame(display);
    while (__atomic_load_n(&syncs, __ATOMIC_RELAXED) == 0)
        usleep(1000);

    for (int frame = 0; frame < FRAMES; frame++) {

        /* It takes some frames until it is known that the scene changes often, and that processors are short */
        if (frame == FRAMES / 2)
            print("before");

        int before = __atomic_load_n(&syncs, __ATOMIC_RELAXED);
        show(frame, is_video);
        guac_display_render_thread_notify_frame(render_thread);
        usleep(FRAME * 1000);
        while (__atomic_load_n(&syncs, __ATOMIC_RELAXED) == before)
            usleep(1000);

    }
    print("moving");

    usleep(STILL * 1000);
    print("still");
    return 0;

}
