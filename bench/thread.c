/* The floor: one variable in static thread-local storage, behind the same functions */

/* Libguac's calls of tls-rs are direct, and so are these: the symbols are protected, as those of tls-rs are */
#pragma GCC visibility push(protected)

#include <guacamole/thread-local.h>

static __thread void* variable __attribute__((tls_model("initial-exec")));

int guac_thread_local_key_create(guac_thread_local_key_t* key, guac_thread_local_destructor_t destructor) {
    (void) destructor;
    *key = 1;
    return 0;
}

int guac_thread_local_key_delete(guac_thread_local_key_t key) {
    (void) key;
    return 0;
}

int guac_thread_local_setspecific(guac_thread_local_key_t key, const void* value) {
    (void) key;
    variable = (void*) value;
    return 0;
}

void* guac_thread_local_getspecific(guac_thread_local_key_t key) {
    (void) key;
    return variable;
}
