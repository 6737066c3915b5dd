/* Does a join handler know the user's version of the protocol, and which error does the user receive if it fails? */

#include <guacamole/client.h>
#include <guacamole/protocol.h>
#include <guacamole/socket.h>
#include <guacamole/user.h>

#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static int join(guac_user* user, int argc, char** argv) {
    (void) argc; (void) argv;
    printf("version: %s\n", user->info.protocol_version == GUAC_PROTOCOL_VERSION_1_5_0 ? "known" : "unknown");
    return 1;
}

static int join_and_abort_client(guac_user* user, int argc, char** argv) {
    (void) argc; (void) argv;
    guac_client_abort(user->client, GUAC_PROTOCOL_STATUS_UPSTREAM_NOT_FOUND, "no target");
    return 1;
}

static int join_and_abort_user(guac_user* user, int argc, char** argv) {
    (void) argc; (void) argv;
    guac_user_abort(user, GUAC_PROTOCOL_STATUS_CLIENT_BAD_REQUEST, "no");
    return 1;
}

static void try(const char* name, guac_user_join_handler* handler) {

    static const char handshake[] = "4.size,3.800,3.600,2.96;7.connect,13.VERSION_1_5_0;";
    char received[4096];
    size_t length = 0;
    ssize_t count;
    int sockets[2];

    guac_client* client = guac_client_alloc();
    guac_user* user = guac_user_alloc();
    if (client == NULL || user == NULL || socketpair(AF_UNIX, SOCK_STREAM, 0, sockets))
        return;

    user->client = client;
    user->owner = 1;
    user->socket = guac_socket_open(sockets[0]);
    client->join_handler = handler;

    if (write(sockets[1], handshake, strlen(handshake)) < 0)
        return;
    guac_user_handle_connection(user, 1000000);
    guac_socket_flush(user->socket);
    guac_socket_free(user->socket);

    while ((count = read(sockets[1], received + length, sizeof(received) - 1 - length)) > 0)
        length += count;
    received[length] = '\0';

    char* error = strstr(received, "5.error,");
    printf("%s: %s\n", name, error == NULL ? "no error" : error);

}

int main(void) {
    try("fails", join);
    try("aborts the client", join_and_abort_client);
    try("aborts the user", join_and_abort_user);
    return 0;
}
