/* The functions of libguac.c, for the tests */

#ifndef LIBGUAC_H
#define LIBGUAC_H

#include <guacamole/error-types.h>
#include <guacamole/thread-local.h>

guac_status* guac_test_error(void);

const char** guac_test_error_message(void);

void* guac_test_get(guac_thread_local_key_t key);

#endif
