/* A plugin for guacd which sends two megabytes a second to all users, in twenty frames. Each is an image between two "log"
 * instructions, which have the number of the frame and the lag that guacd knows of. The first frames come as fast as the owner
 * takes them, which makes the owner's kernel enlarge its buffer. A user who joins is told the number of the last frame in a
 * "name" instruction. Whoever presses "f" is sent more than guacd queues. If somebody presses "a", the others are sent more than
 * the kernel buffers, and then the connection is aborted. */

#include <guacamole/client.h>
#include <guacamole/protocol.h>
#include <guacamole/socket.h>
#include <guacamole/timestamp.h>
#include <guacamole/user.h>

#include <cairo/cairo.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define IMAGE_SIZE 160
#define PART_LENGTH 4000
#define FAST_FRAMES 400

static const char* arguments[] = { NULL };
static pthread_t thread;
static int started;

/* Held while a frame is sent, so that users join between two. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int frame;

static void send_much(guac_user* user, int length) {
    static char part[PART_LENGTH + 1];
    memset(part, 'x', PART_LENGTH);
    for (; length > 0; length -= PART_LENGTH)
        guac_protocol_send_log(user->socket, "%s", part);
    guac_socket_flush(user->socket);
}

static void* send_much_to_guest(guac_user* user, void* data) {
    (void) data;
    if (!user->owner)
        send_much(user, 30 * 1024 * 1024);
    return NULL;
}

static int key(guac_user* user, int keysym, int pressed) {

    if (pressed && keysym == 'f')
        send_much(user, 80 * 1024 * 1024);

    if (pressed && keysym == 'a') {
        pthread_mutex_lock(&lock);
        guac_client_foreach_user(user->client, send_much_to_guest, NULL);
        guac_client_abort(user->client, GUAC_PROTOCOL_STATUS_UPSTREAM_ERROR, "Aborted on request.");
        pthread_mutex_unlock(&lock);
    }

    return 0;

}

static void* send_frames(void* data) {

    guac_client* client = (guac_client*) data;

    /* Noise, which no image format makes small */
    static uint32_t pixels[IMAGE_SIZE * IMAGE_SIZE];
    uint32_t random = 1;
    for (int i = 0; i < IMAGE_SIZE * IMAGE_SIZE; i++)
        pixels[i] = (random = random * 1664525 + 1013904223) >> 8;
    cairo_surface_t* surface = cairo_image_surface_create_for_data((unsigned char*) pixels, CAIRO_FORMAT_RGB24, IMAGE_SIZE,
            IMAGE_SIZE, IMAGE_SIZE * 4);

    while (client->state == GUAC_CLIENT_RUNNING) {
        int lag = guac_client_get_processing_lag(client);
        pthread_mutex_lock(&lock);
        frame++;
        guac_protocol_send_log(client->socket, "%i %i", frame, lag);
        guac_client_stream_png(client, client->socket, GUAC_COMP_OVER, GUAC_DEFAULT_LAYER, 0, 0, surface);
        guac_protocol_send_log(client->socket, "%i %i", frame, lag);
        guac_client_end_frame(client);
        guac_socket_flush(client->socket);
        pthread_mutex_unlock(&lock);
        if (frame > FAST_FRAMES)
            guac_timestamp_msleep(50);
    }

    cairo_surface_destroy(surface);
    return NULL;

}

static int join(guac_user* user, int argc, char** argv) {
    (void) argc; (void) argv;
    user->key_handler = key;
    /* Others may be added before the owner */
    if (!user->owner)
        return 0;
    started = !pthread_create(&thread, NULL, send_frames, user->client);
    return !started;
}

static int join_pending(guac_client* client) {
    char name[16];
    pthread_mutex_lock(&lock);
    snprintf(name, sizeof(name), "%i", frame);
    guac_protocol_send_name(client->pending_socket, name);
#if __has_include(<guacamole/display.h>)
    guac_protocol_send_sync(client->pending_socket, client->last_sent_timestamp, 1);
#else
    guac_protocol_send_sync(client->pending_socket, client->last_sent_timestamp);
#endif
    guac_socket_flush(client->pending_socket);
    pthread_mutex_unlock(&lock);
    return 0;
}

static int end(guac_client* client) {
    (void) client;
    if (started)
        pthread_join(thread, NULL);
    return 0;
}

int guac_client_init(guac_client* client) {
    client->args = arguments;
    client->join_handler = join;
    client->join_pending_handler = join_pending;
    client->free_handler = end;
    return 0;
}
