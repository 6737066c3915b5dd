/* A design of thread-local storage, as the benchmark sees it: loops of calls within a shared library of its own */

#ifndef DESIGN_H
#define DESIGN_H

#include <stdint.h>

/* Calls in one turn of a loop: any number of keys that is measured divides it */
#define CALLS 48

typedef struct design {
    int (*create)(uintptr_t* key, void (*destructor)(void*));
    int (*delete)(uintptr_t key);
    int (*set)(uintptr_t key, void* value);
    void* (*get)(uintptr_t key);

    /* These loop over CALLS keys, as often as told */
    void (*get_loop)(const uintptr_t* keys, long turns);
    void (*set_loop)(const uintptr_t* keys, long turns);

    /* The value of each key must point to the next key */
    void (*dependent_loop)(const uintptr_t* keys, long turns);

    /* What acquiring and releasing a guac_rwlock calls: get, set, get, set */
    void (*pair_loop)(const uintptr_t* keys, long turns);

    /* Creates and deletes a key */
    void (*create_loop)(const uintptr_t* keys, long turns);
} design;

extern const design bench_pthread, bench_thread, bench_mutex_array, bench_mutex_array_large, bench_tls_rs;

#endif
