/* A design of thread-local storage, as the benchmark sees it: loops of calls in a shared library per design */

#ifndef DESIGN_H
#define DESIGN_H

#include <stdint.h>

/* Calls in one turn of a loop. A multiple of every number of keys that is measured */
#define CALLS 48

typedef struct design {
    int (*create)(uintptr_t* key, void (*destructor)(void*));
    int (*delete)(uintptr_t key);
    int (*set)(uintptr_t key, void* value);
    void* (*get)(uintptr_t key);

    /* These go over CALLS keys, so many turns. NULL if the design is no store of values */
    void (*get_loop)(const uintptr_t* keys, long turns);
    void (*set_loop)(const uintptr_t* keys, long turns);

    /* The value of each key must point to the next key */
    void (*dependent_loop)(const uintptr_t* keys, long turns);

    /* The calls that acquire and release a guac_rwlock: get, set, get, set */
    void (*pair_loop)(const uintptr_t* keys, long turns);

    /* Creates and deletes a key */
    void (*create_loop)(const uintptr_t* keys, long turns);
} design;

extern const design bench_pthread, bench_thread, bench_mutex_array, bench_mutex_array_large, bench_tls_rs;

/* For locks only: create and set are all it has */
extern const design bench_slots16;

#endif
