/* What becomes of an argument that needs a stream when all streams are in use? */

#include <guacamole/client.h>
#include <guacamole/client-constants.h>
#include <guacamole/protocol.h>
#include <guacamole/socket.h>
#include <guacamole/user.h>
#include <guacamole/user-constants.h>
#include <stdio.h>

int main(void) {

    guac_client* client = guac_client_alloc();
    guac_user* user = guac_user_alloc();
    if (client == NULL || user == NULL)
        return 1;

    user->client = client;
    user->socket = client->socket = guac_socket_alloc();

    int of_user = 0, of_client = 0;
    while (guac_user_alloc_stream(user) != NULL)
        of_user++;
    while (guac_client_alloc_stream(client) != NULL)
        of_client++;
    printf("all streams of the user: %d, of the client: %d\n",
            of_user == GUAC_USER_MAX_STREAMS, of_client == GUAC_CLIENT_MAX_STREAMS);
    fflush(stdout);

    guac_user_stream_argv(user, user->socket, "text/plain", "name", "value");
    guac_client_stream_argv(client, client->socket, "text/plain", "name", "value");
    printf("without another: went on\n");
    return 0;

}
