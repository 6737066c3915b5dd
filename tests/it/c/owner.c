/* Does a join handler, or a thread that it starts, find the owner that is joining, and can it send something to all users? */

#include <guacamole/client.h>
#include <guacamole/protocol.h>
#include <guacamole/socket.h>
#include <guacamole/user.h>

#include <stdio.h>

static void* remember(guac_user* owner, void* seen) {
    *((guac_user**) seen) = owner;
    return NULL;
}

static guac_user* seen;

static size_t received;

static ssize_t receive(guac_socket* socket, const void* data, size_t length) {
    (void) socket; (void) data;
    received += length;
    return length;
}

static int join(guac_user* user, int argc, char** argv) {
    (void) argv;
    guac_client_for_owner(user->client, remember, &seen);
    guac_protocol_send_name(user->client->socket, "sent to all");
    guac_socket_flush(user->client->socket);
    return argc;
}

int main(void) {

    guac_client* client = guac_client_alloc();
    guac_user* user = guac_user_alloc();
    guac_user* after;
    user->client = client;
    user->socket = guac_socket_alloc();
    user->socket->write_handler = receive;
    user->owner = 1;
    client->join_handler = join;

    guac_client_add_user(client, user, 0, NULL);
    guac_client_for_owner(client, remember, &after);
    printf("while joining: %s, who receives %s; ", seen == user ? "the owner" : "nobody", received > 0 ? "it" : "nothing");
    printf("after: %s; ", after == user ? "the owner" : "nobody");

    /* A handler that fails leaves no owner */
    guac_client_remove_user(client, user);
    guac_client_add_user(client, user, 1, NULL);
    guac_client_for_owner(client, remember, &after);
    printf("after a failure: %s\n", after == user ? "the owner" : "nobody");
    return 0;

}
