/* In place of tls-rs's header of this name, so that its tests test pthread keys */

#ifndef GUAC_THREAD_LOCAL_H
#define GUAC_THREAD_LOCAL_H

#include <pthread.h>
#include <stdint.h>

/* All pthread keys are the library's: there is no other kind whose destructors run later, and no cap */
#define GUAC_TEST_ALL_KEYS_ARE_OURS

typedef pthread_key_t guac_thread_local_key_t;
typedef void (*guac_thread_local_destructor_t)(void* value);

/* Functions: the compiler would warn of some arguments that the tests give to pthread_key_create() */

static inline int guac_thread_local_key_create(guac_thread_local_key_t* key,
        guac_thread_local_destructor_t destructor) {
    return pthread_key_create(key, destructor);
}

static inline int guac_thread_local_key_delete(guac_thread_local_key_t key) {
    return pthread_key_delete(key);
}

static inline int guac_thread_local_setspecific(guac_thread_local_key_t key,
        const void* value) {
    return pthread_setspecific(key, value);
}

static inline void* guac_thread_local_getspecific(guac_thread_local_key_t key) {
    return pthread_getspecific(key);
}

#endif
