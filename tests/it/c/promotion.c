/* What does a user receive who joins while an instruction is being sent to all users? */

#include <guacamole/client.h>
#include <guacamole/socket.h>
#include <guacamole/user.h>

#include <fcntl.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

int main(void) {

    int sockets[2];
    char received[64];

    guac_client* client = guac_client_alloc();
    guac_user* user = guac_user_alloc();
    if (client == NULL || user == NULL || socketpair(AF_UNIX, SOCK_STREAM, 0, sockets))
        return 1;

    user->client = client;
    user->socket = guac_socket_open(sockets[0]);
    fcntl(sockets[1], F_SETFL, O_NONBLOCK);

    guac_socket_instruction_begin(client->socket);
    guac_socket_write_string(client->socket, "4.sync,");

    /* Those who join are users within a quarter of a second */
    if (guac_client_add_user(client, user, 0, NULL))
        return 1;
    usleep(600000);

    guac_socket_write_string(client->socket, "1.5;");
    guac_socket_instruction_end(client->socket);
    usleep(600000);

    guac_socket_instruction_begin(client->socket);
    guac_socket_write_string(client->socket, "3.nop;");
    guac_socket_instruction_end(client->socket);
    guac_socket_flush(client->socket);

    ssize_t length = read(sockets[1], received, sizeof(received) - 1);
    printf("%.*s\n", length > 0 ? (int) length : 0, received);
    return 0;

}
