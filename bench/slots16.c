/*
 * Upstream's development branch keeps no key for each guac_rwlock any more
 * (GUACAMOLE-1998). The process has one native key, whose value is an array of
 * 16 slots per thread: which locks the thread holds, and how often. This is
 * that design, written anew from this description. It keeps the state of
 * locks, and cannot keep values of arbitrary keys.
 */

#define _POSIX_C_SOURCE 200809L

#include "design.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

#define SLOTS 16

/* A lock that the thread holds. If no lock has the slot, then lock is NULL */
typedef struct { const void* lock; int for_writing; unsigned count; } slot;

static pthread_once_t once = PTHREAD_ONCE_INIT;
static pthread_key_t slots_key;

static void create_slots_key(void) {
    if (pthread_key_create(&slots_key, free))
        abort();
}

/* The calling thread's slots, which are allocated when it uses its first lock */
static slot* thread_slots(void) {
    slot* slots = pthread_getspecific(slots_key);
    if (slots == NULL && (slots = calloc(SLOTS, sizeof(*slots))) != NULL
            && pthread_setspecific(slots_key, slots)) {
        free(slots);
        slots = NULL;
    }
    return slots;
}

/* The slot that a lock has, or else a free one, or else NULL */
static slot* find_slot(slot* slots, const void* lock) {
    slot* found = NULL;
    for (int i = 0; i < SLOTS; i++) {
        if (slots[i].lock == lock)
            return &slots[i];
        if (slots[i].lock == NULL && found == NULL)
            found = &slots[i];
    }
    return found;
}

/* Results are zero, or an error number */

static int acquire(pthread_rwlock_t* lock, int for_writing) {
    slot* slots = thread_slots();
    slot* slot = slots == NULL ? NULL : find_slot(slots, lock);
    if (slot == NULL)
        return slots == NULL ? ENOMEM : EAGAIN;
    if (slot->lock == lock && (slot->for_writing || !for_writing)) {
        slot->count++;
        return 0;
    }
    /* A lock that is held for reading is released before it is taken for writing */
    int error = slot->lock == lock ? pthread_rwlock_unlock(lock) : 0;
    if (error == 0)
        error = for_writing ? pthread_rwlock_wrlock(lock) : pthread_rwlock_rdlock(lock);
    if (error == 0) {
        slot->lock = lock;
        slot->for_writing = for_writing;
        slot->count++;
    }
    return error;
}

int slots16_rwlock_acquire_read_lock(pthread_rwlock_t* lock) {
    return acquire(lock, 0);
}

int slots16_rwlock_acquire_write_lock(pthread_rwlock_t* lock) {
    return acquire(lock, 1);
}

int slots16_rwlock_release_lock(pthread_rwlock_t* lock) {
    slot* slots = thread_slots();
    slot* slot = slots == NULL ? NULL : find_slot(slots, lock);
    if (slot == NULL || slot->lock != lock)
        return EPERM;
    if (--slot->count > 0)
        return 0;
    slot->lock = NULL;
    return pthread_rwlock_unlock(lock);
}

void slots16_rwlock_init(pthread_rwlock_t* lock) {
    pthread_once(&once, create_slots_key);
    pthread_rwlock_init(lock, NULL);
}

/* The first value of a thread is its first slot. The lock itself is left alone */

static int create(uintptr_t* key, void (*destructor)(void*)) {
    static char lock;
    (void) destructor;
    pthread_once(&once, create_slots_key);
    *key = (uintptr_t) &lock;
    return 0;
}

static int delete(uintptr_t key) {
    (void) key;
    return 0;
}

static int set(uintptr_t key, void* value) {
    slot* slots = thread_slots();
    slot* slot = slots == NULL ? NULL : find_slot(slots, (const void*) key);
    (void) value;
    if (slot == NULL)
        return ENOMEM;
    slot->lock = (const void*) key;
    slot->count = 1;
    return 0;
}

const design bench_slots16 = { create, delete, set, NULL, NULL, NULL, NULL, NULL, NULL };
