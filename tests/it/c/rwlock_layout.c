/* What a plugin compiles into itself of a guac_rwlock, and of the structures that contain one. */

#include <guacamole/client.h>
#include <guacamole/rwlock.h>

#include <stddef.h>
#include <stdio.h>

int main(void) {
    printf("guac_rwlock %zu lock %zu key %zu\n", sizeof(guac_rwlock), offsetof(guac_rwlock, lock),
            offsetof(guac_rwlock, key));
    printf("guac_client %zu\n", sizeof(guac_client));
    return 0;
}
