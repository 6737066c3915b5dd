/* In place of tls-rs's header of this name: the preload library does not store guac_error */

#include <guacamole/error-types.h>

static __thread guac_status guac_thread_local_error_status;
static __thread const char* guac_thread_local_error_message;
