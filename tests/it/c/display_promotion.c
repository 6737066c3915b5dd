/* What do users miss who join a display while a frame is being sent, or just before the next one? And do they receive anything
 * that is meant for those who were there before? */

#include <guacamole/client.h>
#include <guacamole/display.h>
#include <guacamole/socket.h>
#include <guacamole/user.h>

#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "sleeps.h"

#define SIZE 256

/* Stock does not have this. */
void guac_display_sync_pending_users(guac_display* display) __attribute__((weak));

static guac_display* display;

/* What a guest has received. */
typedef struct {
    char data[1 << 20];
    size_t length;
} received;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static volatile int owner_syncs;

/* The thread that promotes users, and whether it may do so now. Stock also promotes the owner. */
static volatile pid_t promoter;
static volatile int may_join = 1;

/* Whether the next rectangle that the owner is sent has to wait, and whether it does */
static volatile int blocks;
static volatile int blocked;

/* Whether another frame is drawn as soon as the state has been sent, and whether that has happened */
static volatile int draws;
static volatile int has_drawn;

static ssize_t owner_receives(guac_socket* socket, const void* buf, size_t count) {
    (void) socket;
    if (count >= 7 && memcmp(buf, "4.sync,", 7) == 0)
        owner_syncs++;
    /* There is no room until the thread that promotes users cannot go on */
    if (blocks && count >= 7 && memcmp(buf, "4.rect,", 7) == 0) {
        blocks = 0;
        blocked = 1;
        for (int asleep = 0; asleep < 100; usleep(1000))
            asleep = promoter != 0 && sleeps(promoter) ? asleep + 1 : 0;
    }
    return count;
}

static ssize_t guest_receives(guac_socket* socket, const void* buf, size_t count) {
    received* guest = (received*) socket->data;
    pthread_mutex_lock(&lock);
    if (guest->length + count < sizeof(guest->data)) {
        memcpy(guest->data + guest->length, buf, count);
        guest->length += count;
    }
    pthread_mutex_unlock(&lock);
    return count;
}

/* What a guest has received after the state, or NULL if they have not received all of that. */
static const char* after_state(const received* guest) {
    const char* sync = strstr(guest->data, "4.sync,");
    return sync != NULL ? strchr(sync, ';') : NULL;
}

/* Draws four squares, and completes the frame. */
static void draw(uint32_t color) {
    guac_display_layer* layer = guac_display_default_layer(display);
    guac_display_layer_raw_context* context = guac_display_layer_open_raw(layer);
    for (int y = 0; y < SIZE; y++) {
        uint32_t* row = (uint32_t*) (context->buffer + y * context->stride);
        for (int x = 0; x < SIZE; x++)
            row[x] = 0xFF000000 | (color << (x < SIZE / 2 ? 8 : 0) << (y < SIZE / 2 ? 4 : 0));
    }
    context->dirty = context->bounds;
    guac_display_layer_close_raw(layer, context);
    guac_display_end_frame(display);
}

static void draw_and_wait(uint32_t color) {
    int syncs = owner_syncs;
    draw(color);
    while (owner_syncs == syncs)
        usleep(1000);
}

static int join_pending(guac_client* client) {
    if (!may_join || (blocks && !blocked))
        return 1;
    if (owner_syncs == 0)
        return 0;
    promoter = syscall(SYS_gettid);
    if (guac_display_sync_pending_users != NULL)
        guac_display_sync_pending_users(display);
    else
        guac_display_dup(display, client->pending_socket);
    if (draws) {
        draw_and_wait(3);
        has_drawn = 1;
    }
    return 0;
}

static guac_user* add(guac_client* client, guac_socket_write_handler* write_handler, received* guest) {
    guac_user* user = guac_user_alloc();
    user->client = client;
    user->owner = guest == NULL;
    user->socket = guac_socket_alloc();
    user->socket->data = guest;
    user->socket->write_handler = write_handler;
    return guac_client_add_user(client, user, 0, NULL) ? NULL : user;
}

int main(void) {

    static received first, second;

    guac_client* client = guac_client_alloc();
    display = guac_display_alloc(client);
    client->join_pending_handler = join_pending;
    if (display == NULL || add(client, owner_receives, NULL) == NULL)
        return 1;

    alarm(30);
    guac_display_layer_resize(guac_display_default_layer(display), SIZE, SIZE);
    while (owner_syncs == 0) {
        draw(1);
        usleep(100000);
        draw(2);
    }
    draw_and_wait(1);
    may_join = 0;

    /* A guest joins while the owner has no room for the frame */
    add(client, guest_receives, &first);
    int syncs = owner_syncs;
    blocks = 1;
    may_join = 1;
    draw(2);
    while (owner_syncs == syncs || after_state(&first) == NULL)
        usleep(1000);
    usleep(300000);
    may_join = 0;
    printf("a frame that the state includes: %s\n",
            strstr(after_state(&first), "4.rect,") || strstr(after_state(&first), "5.cfill,") ? "sent in part" : "not sent");

    /* Another joins, and a frame follows the state at once */
    add(client, guest_receives, &second);
    draws = 1;
    may_join = 1;
    while (!has_drawn)
        usleep(1000);
    usleep(300000);
    printf("a frame that follows the state: %s\n", strstr(after_state(&second), "5.cfill,") ? "sent" : "missed");
    return 0;

}
