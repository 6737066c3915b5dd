/*
 * Keys at unusual moments: before any constructor has run, in malloc(), before
 * and after fork(), and in the destructors of other keys. And more keys than
 * libc has.
 */

#define _GNU_SOURCE

#include "check.h"

#include <pthread.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

static pthread_key_t first, in_malloc;
static int destroyed, mallocs;

static void destroy(void* value) {
    CHECK(value == VALUE(3));
    destroyed++;
}

static void before_constructors(void) {
    if (first != 0)
        return;
    CHECK(pthread_key_create(&first, destroy) == 0);
    CHECK(pthread_getspecific(first) == NULL);
    CHECK(pthread_setspecific(first, VALUE(1)) == 0);
}

/* This runs before the constructors of all libraries, the preload library's included */
__attribute__((section(".preinit_array"), used))
static void (*const run_before_constructors)(void) = before_constructors;

/* musl does not support that section */
__attribute__((constructor))
static void run_as_constructor(void) {
    before_constructors();
}

/* An allocator which keeps a thread's arena under a key, as some do. The key functions must not call it in turn */

static char arena[1 << 20];
static size_t taken;
static int busy;

static void* take(size_t size) {
    static int created;
    CHECK(!busy);
    busy = 1;
    mallocs++;
    if (!created) {
        CHECK(pthread_key_create(&in_malloc, NULL) == 0);
        created = 1;
    }
    if (pthread_getspecific(in_malloc) == NULL)
        CHECK(pthread_setspecific(in_malloc, arena) == 0);
    size_t begin = (taken + 31) / 32 * 32;
    CHECK(begin + size <= sizeof(arena));
    taken = begin + size;
    busy = 0;
    return &arena[begin];
}

void* malloc(size_t size) {
    return take(size);
}

void* calloc(size_t count, size_t size) {
    return take(count * size); /* never used before, so zero */
}

void* realloc(void* old, size_t size) {
    (void) old;
    return take(size); /* no caller here needs the old contents */
}

void free(void* memory) {
    (void) memory;
}

#define KEYS 1500

static pthread_key_t keys[KEYS];

/* More values than the inline table has room for, so that the storage needs memory */
static void* set_all(void* data) {
    CHECK(malloc(10) != NULL);
    for (int i = 0; i < KEYS; i++) {
        CHECK(pthread_getspecific(keys[i]) == NULL);
        CHECK(pthread_setspecific(keys[i], VALUE(3)) == 0);
    }
    CHECK(pthread_getspecific(in_malloc) == arena);
    CHECK(pthread_setspecific(first, VALUE(3)) == 0);
    return data;
}

int main(void) {

    pthread_t thread;
    int status;

    CHECK(pthread_getspecific(first) == VALUE(1));
    CHECK(malloc(1) != NULL);

    int before = mallocs;
    for (int i = 0; i < KEYS; i++)
        CHECK(pthread_key_create(&keys[i], destroy) == 0);
    CHECK(mallocs == before);

    CHECK(pthread_create(&thread, NULL, set_all, NULL) == 0);
    CHECK(pthread_join(thread, NULL) == 0);
    CHECK(destroyed == KEYS + 1);
    CHECK(pthread_getspecific(first) == VALUE(1));

    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        CHECK(pthread_getspecific(first) == VALUE(1));
        CHECK(pthread_create(&thread, NULL, set_all, NULL) == 0);
        CHECK(pthread_join(thread, NULL) == 0);
        _exit(destroyed == 2 * (KEYS + 1) ? 0 : 1);
    }
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    return 0;

}
