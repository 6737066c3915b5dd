/* In place of libguac: uses keys, and stores guac_error as the patched error.c does */

#include "libguac.h"

#include <guacamole/private/thread-local-error.h>
#include <guacamole/thread-local.h>

guac_status* guac_test_error(void) {
    return &guac_thread_local_error_status;
}

const char** guac_test_error_message(void) {
    return &guac_thread_local_error_message;
}

void* guac_test_get(guac_thread_local_key_t key) {
    return guac_thread_local_getspecific(key);
}
