/* A plugin for guacd in which the thread of a user who presses a key never returns. */

#include <guacamole/client.h>
#include <guacamole/user.h>

#include <unistd.h>

static const char* arguments[] = { NULL };

static int key(guac_user* user, int keysym, int pressed) {
    (void) user; (void) keysym; (void) pressed;
    for (;;)
        pause();
    return 0;
}

static int join(guac_user* user, int argc, char** argv) {
    (void) argc; (void) argv;
    user->key_handler = key;
    return 0;
}

int guac_client_init(guac_client* client) {
    client->args = arguments;
    client->join_handler = join;
    return 0;
}
