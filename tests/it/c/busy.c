/* A plugin for guacd which sends two megabytes a second to all users, in twenty frames, at hardly any cost. The first frames come
 * as fast as the owner takes them, which makes the owner's kernel enlarge its buffer. A user who joins is told the number of the
 * last frame in a "name" instruction. */

#include <guacamole/client.h>
#include <guacamole/protocol.h>
#include <guacamole/socket.h>
#include <guacamole/timestamp.h>
#include <guacamole/user.h>

#include <pthread.h>
#include <stdio.h>
#include <string.h>

#define PARTS 17
#define PART_LENGTH 6000
#define FAST_FRAMES 400

static const char* arguments[] = { NULL };
static pthread_t thread;
static int started;

/* Held while a frame is sent, so that users join between two. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int frame;

static void* send_frames(void* data) {

    guac_client* client = (guac_client*) data;
    static char part[PART_LENGTH + 1];
    memset(part, 'x', PART_LENGTH);

    while (client->state == GUAC_CLIENT_RUNNING) {
        pthread_mutex_lock(&lock);
        frame++;
        for (int i = 0; i < PARTS; i++)
            guac_protocol_send_log(client->socket, "%i %s", frame, part);
        guac_client_end_frame(client);
        guac_socket_flush(client->socket);
        pthread_mutex_unlock(&lock);
        if (frame > FAST_FRAMES)
            guac_timestamp_msleep(50);
    }

    return NULL;

}

static int join(guac_user* user, int argc, char** argv) {
    (void) argc; (void) argv;
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
    guac_protocol_send_sync(client->pending_socket, client->last_sent_timestamp, 1);
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
