/*
 * Keys as upstream's pull request #614 (GUACAMOLE-1998) proposed them: an array
 * of values per thread, and one mutex for the process, held during every call.
 * A fork copies the state of the mutex, so a child may wait for a thread that
 * it does not have. torture.c must notice that.
 */

#define _POSIX_C_SOURCE 200809L

#include <guacamole/thread-local.h>

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

#ifndef KEYS
#define KEYS 1000
#endif

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static pthread_key_t entries_key;

/* No key below this one is free */
static int first_free;

static struct { unsigned generation; int used; guac_thread_local_destructor_t destructor; } keys[KEYS];

/* One thread's value, and the generation of the key that it was set for */
typedef struct { unsigned generation; void* value; } entry;

static void* value_of(entry* entries, int key) {
    int known = entries != NULL && keys[key].used && entries[key].generation == keys[key].generation;
    return known ? entries[key].value : NULL;
}

static void free_entries(void* data) {
    for (int i = 0; i < KEYS; i++) {
        pthread_mutex_lock(&lock);
        void* value = value_of(data, i);
        guac_thread_local_destructor_t destructor = keys[i].destructor;
        pthread_mutex_unlock(&lock);
        if (value != NULL && destructor != NULL)
            destructor(value);
    }
    free(data);
}

static void create_entries_key(void) {
    pthread_key_create(&entries_key, free_entries);
}

int guac_thread_local_key_create(guac_thread_local_key_t* key, guac_thread_local_destructor_t destructor) {
    pthread_once(&once, create_entries_key);
    pthread_mutex_lock(&lock);
    int i = first_free;
    while (i < KEYS && keys[i].used)
        i++;
    first_free = i;
    if (i < KEYS) {
        keys[i].generation++;
        keys[i].used = 1;
        keys[i].destructor = destructor;
        *key = i;
    }
    pthread_mutex_unlock(&lock);
    return i < KEYS ? 0 : EAGAIN;
}

int guac_thread_local_key_delete(guac_thread_local_key_t key) {
    pthread_mutex_lock(&lock);
    keys[key].used = 0;
    if ((int) key < first_free)
        first_free = key;
    pthread_mutex_unlock(&lock);
    return 0;
}

int guac_thread_local_setspecific(guac_thread_local_key_t key, const void* value) {
    pthread_mutex_lock(&lock);
    entry* entries = pthread_getspecific(entries_key);
    if (entries == NULL && (entries = calloc(KEYS, sizeof(*entries))) != NULL)
        pthread_setspecific(entries_key, entries);
    if (entries != NULL)
        entries[key] = (entry) { keys[key].generation, (void*) value };
    pthread_mutex_unlock(&lock);
    return entries != NULL ? 0 : ENOMEM;
}

void* guac_thread_local_getspecific(guac_thread_local_key_t key) {
    pthread_mutex_lock(&lock);
    void* value = value_of(pthread_getspecific(entries_key), key);
    pthread_mutex_unlock(&lock);
    return value;
}
