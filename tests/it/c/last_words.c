/* A plugin for guacd whose process says something once exit() is called. */

#include <guacamole/client.h>
#include <guacamole/user.h>

#include <stdio.h>
#include <stdlib.h>

static const char* arguments[] = { NULL };

static void speak(void) {
    fprintf(stderr, "exit() has been called\n");
}

static int join(guac_user* user, int argc, char** argv) {
    (void) user; (void) argc; (void) argv;
    return atexit(speak);
}

int guac_client_init(guac_client* client) {
    client->args = arguments;
    client->join_handler = join;
    return 0;
}
