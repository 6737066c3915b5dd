/*
 * Behaviour when libc has no native key left for the library, or no memory for
 * its value. Linked statically, so that the constructor below runs before that
 * of the library, and with -Wl,--wrap=pthread_setspecific
 */

#include "check.h"
#include "libguac.h"

#include <errno.h>
#include <pthread.h>

#define COUNT 100
#define MOST 4096

int __real_pthread_setspecific(pthread_key_t key, const void* value);
int __wrap_pthread_setspecific(pthread_key_t key, const void* value);

/* Whether libc has no memory for the values of native keys, and how often it was asked */
static int libc_fails, asked;

int __wrap_pthread_setspecific(pthread_key_t key, const void* value) {
    asked++;
    return libc_fails ? ENOMEM : __real_pthread_setspecific(key, value);
}

static pthread_key_t taken[MOST];
static int taken_count;

/* Before the library creates its native key, when it is loaded */
__attribute__((constructor(101))) static void take_all_native_keys(void) {
    while (taken_count < MOST && pthread_key_create(&taken[taken_count], NULL) == 0)
        taken_count++;
    CHECK(taken_count > 0 && taken_count < MOST);
}

static guac_thread_local_key_t keys[COUNT], key;
static int destroyed;

static void destroy(void* value) {
    CHECK(value == VALUE(1));
    destroyed++;
}

static void no_value_has_changed(int count) {
    for (int i = 0; i < count; i++)
        CHECK(guac_thread_local_getspecific(keys[i]) == VALUE(i + 1));
    for (int i = count; i < COUNT; i++)
        CHECK(guac_thread_local_getspecific(keys[i]) == NULL);
    CHECK(guac_thread_local_getspecific(key) == NULL);
}

/* Everything works but for values that thread exit must destroy or free */
static void* use_keys_without_a_native_key(void* data) {

    guac_thread_local_key_t other;
    int count;

    /* Whatever number of values the thread has */
    for (count = 0; count < 16; count++) {
        CHECK(guac_thread_local_setspecific(key, VALUE(1)) == ENOMEM);
        CHECK(guac_thread_local_setspecific(key, NULL) == 0);
        no_value_has_changed(count);
        CHECK(guac_thread_local_setspecific(keys[count], VALUE(count + 1)) == 0);
    }

    while (guac_thread_local_setspecific(keys[count], VALUE(count + 1)) == 0)
        CHECK(++count < COUNT);
    CHECK(guac_thread_local_setspecific(keys[count], VALUE(count + 1)) == ENOMEM);
    no_value_has_changed(count);

    /* The thread cannot keep a spare cell, so cells go back to the registry and are used again */
    for (int i = 0; i < 1000; i++) {
        CHECK(guac_thread_local_key_create(&other, destroy) == 0);
        CHECK(guac_thread_local_setspecific(other, VALUE(1)) == ENOMEM);
        CHECK(guac_thread_local_key_delete(other) == 0);
    }
    no_value_has_changed(count);
    return data;

}

static void* set_a_value(void* data) {
    CHECK(guac_thread_local_setspecific(key, VALUE(1)) == 0);
    return data;
}

static void* set_a_value_after_libc_has_failed(void* data) {
    libc_fails = 1;
    use_keys_without_a_native_key(data);
    libc_fails = 0;
    for (int i = 0; i < COUNT; i++)
        CHECK(guac_thread_local_setspecific(keys[i], VALUE(i + 1)) == 0);
    no_value_has_changed(COUNT);
    return set_a_value(data);
}

static void run(void* (*start)(void*)) {
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, start, NULL) == 0);
    CHECK(pthread_join(thread, NULL) == 0);
}

int main(void) {

    CHECK(guac_thread_local_key_create(&key, destroy) == 0);
    for (int i = 0; i < COUNT; i++)
        CHECK(guac_thread_local_key_create(&keys[i], NULL) == 0);
    run(use_keys_without_a_native_key);
    CHECK(destroyed == 0);
    CHECK(asked == 0);

    /* As soon as libc has a native key, the library creates it */
    CHECK(pthread_key_delete(taken[--taken_count]) == 0);
    run(set_a_value);
    CHECK(destroyed == 1);
    CHECK(asked == 1); /* Not again at the end of the thread, as glibc would go through all native keys once more */
    CHECK(pthread_key_create(&taken[taken_count], NULL) == EAGAIN);

    asked = 0;
    run(set_a_value_after_libc_has_failed);
    CHECK(destroyed == 2);
    CHECK(asked > 1);
    return 0;

}
