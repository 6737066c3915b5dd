/*
 * The loops. They are compiled once for each design, into one shared library
 * with it, so that calls go through the PLT as those of libguac do.
 */

#include "design.h"

#include <stddef.h>

#ifdef DESIGN_IS_LIBC
#include <pthread.h>
typedef pthread_key_t native_key;
#define CREATE pthread_key_create
#define DELETE pthread_key_delete
#define GET pthread_getspecific
#define SET pthread_setspecific
#else
#include <guacamole/thread-local.h>
typedef guac_thread_local_key_t native_key;
#define CREATE guac_thread_local_key_create
#define DELETE guac_thread_local_key_delete
#define GET guac_thread_local_getspecific
#define SET guac_thread_local_setspecific
#endif

/* Keeps the compiler from removing the call whose result this is */
#define USE(value) __asm__ volatile("" : : "r" (value))

static int create(uintptr_t* key, void (*destructor)(void*)) {
    native_key created;
    int error = CREATE(&created, destructor);
    if (error == 0)
        *key = created;
    return error;
}

static int delete(uintptr_t key) {
    return DELETE(key);
}

static int set(uintptr_t key, void* value) {
    return SET(key, value);
}

static void* get(uintptr_t key) {
    return GET(key);
}

static void get_loop(const uintptr_t* keys, long turns) {
    for (long turn = 0; turn < turns; turn++)
        for (int i = 0; i < CALLS; i++)
            USE(GET(keys[i]));
}

static void set_loop(const uintptr_t* keys, long turns) {
    for (long turn = 0; turn < turns; turn++)
        for (int i = 0; i < CALLS; i++)
            USE(SET(keys[i], &keys[i]));
}

static void dependent_loop(const uintptr_t* keys, long turns) {
    for (long call = 0; call < turns * CALLS; call++)
        keys = GET(*keys);
    USE(keys);
}

static void pair_loop(const uintptr_t* keys, long turns) {
    for (long turn = 0; turn < turns; turn++)
        for (int i = 0; i < CALLS; i++) {
            SET(keys[i], (char*) GET(keys[i]) + 1);
            SET(keys[i], (char*) GET(keys[i]) - 1);
        }
}

static void create_loop(const uintptr_t* keys, long turns) {
    native_key key = 0;
    (void) keys;
    for (long call = 0; call < turns * CALLS; call++) {
        CREATE(&key, NULL);
        DELETE(key);
    }
}

const design DESIGN = {
    create, delete, set, get, get_loop, set_loop, dependent_loop, pair_loop, create_loop
};
