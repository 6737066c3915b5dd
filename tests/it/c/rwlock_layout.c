/* What a plugin compiles into itself of a guac_rwlock, and of the structures that contain one. */

#include <guacamole/client.h>
#include <guacamole/rwlock.h>

#include <stddef.h>
#include <stdio.h>

int main(void) {
    printf("guac_rwlock %zu\n", sizeof(guac_rwlock));
#ifdef HAS_KEYS
    printf("lock %zu key %zu\n", offsetof(guac_rwlock, lock), offsetof(guac_rwlock, key));
#endif
    printf("guac_client %zu\n", sizeof(guac_client));
    return 0;
}
