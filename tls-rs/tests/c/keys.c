/* Keys and values: the results of get, set, create and delete */

#include "check.h"
#include "libguac.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>

static void errors_are_returned(void) {

    errno = 0;
    CHECK(guac_thread_local_key_create(NULL, NULL) == EINVAL);

    /* Zero, numbers that are no keys, and keys that were never created */
    uintptr_t bad[] = { 0, 1, 31, 32, UINTPTR_MAX, UINTPTR_MAX - 31,
        (uintptr_t) 1 << (sizeof(uintptr_t) * 4), ~((uintptr_t) 0) >> 1,
        /* Of the last generation */
        UINTPTR_MAX << (sizeof(uintptr_t) == 8 ? 32 : 20) | 1 };

    for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
        CHECK(guac_thread_local_getspecific(bad[i]) == NULL);
        CHECK(guac_thread_local_setspecific(bad[i], VALUE(1)) == EINVAL);
        CHECK(guac_thread_local_setspecific(bad[i], NULL) == EINVAL);
        CHECK(guac_thread_local_key_delete(bad[i]) == EINVAL);
    }

    /* Numbers that differ from a live key in one bit */
    guac_thread_local_key_t key;
    CHECK(guac_thread_local_key_create(&key, NULL) == 0);
    CHECK(guac_thread_local_setspecific(key, VALUE(1)) == 0);
    for (int bit = 0; bit < (int) sizeof(key) * 8; bit++) {
        guac_thread_local_key_t other = key ^ ((guac_thread_local_key_t) 1 << bit);
        CHECK(guac_thread_local_getspecific(other) == NULL);
        CHECK(guac_thread_local_setspecific(other, VALUE(2)) == EINVAL);
        CHECK(guac_thread_local_key_delete(other) == EINVAL);
    }
    CHECK(guac_thread_local_getspecific(key) == VALUE(1));
    CHECK(guac_thread_local_key_delete(key) == 0);

    CHECK(errno == 0);

}

static void a_deleted_key_is_dead(void) {

    guac_thread_local_key_t dead[1000], key;

    for (int i = 0; i < 1000; i++) {
        CHECK(guac_thread_local_key_create(&key, NULL) == 0);
        CHECK(guac_thread_local_getspecific(key) == NULL);
        CHECK(guac_thread_local_setspecific(key, VALUE(i + 1)) == 0);
        CHECK(guac_thread_local_getspecific(key) == VALUE(i + 1));
        CHECK(guac_thread_local_key_delete(key) == 0);
        dead[i] = key;
    }

    /* This key has the cell of a dead one */
    CHECK(guac_thread_local_key_create(&key, NULL) == 0);
    CHECK(guac_thread_local_setspecific(key, VALUE(1)) == 0);

    for (int i = 0; i < 1000; i++) {
        CHECK(dead[i] != key);
        CHECK(guac_thread_local_getspecific(dead[i]) == NULL);
        CHECK(guac_thread_local_setspecific(dead[i], VALUE(1)) == EINVAL);
        CHECK(guac_thread_local_key_delete(dead[i]) == EINVAL);
    }

    CHECK(guac_thread_local_getspecific(key) == VALUE(1));
    CHECK(guac_thread_local_key_delete(key) == 0);

}

static void* use_own_value(void* data) {
    guac_thread_local_key_t key = *(guac_thread_local_key_t*) data;
    CHECK(guac_thread_local_getspecific(key) == NULL);
    CHECK(guac_thread_local_setspecific(key, VALUE(2)) == 0);
    CHECK(guac_thread_local_getspecific(key) == VALUE(2));
    return NULL;
}

static void each_thread_has_its_own_value(void) {
    guac_thread_local_key_t key;
    pthread_t thread;
    CHECK(guac_thread_local_key_create(&key, NULL) == 0);
    CHECK(guac_thread_local_setspecific(key, VALUE(1)) == 0);
    CHECK(pthread_create(&thread, NULL, use_own_value, &key) == 0);
    CHECK(pthread_join(thread, NULL) == 0);
    CHECK(guac_thread_local_getspecific(key) == VALUE(1));
    CHECK(guac_test_get(key) == VALUE(1));
    CHECK(guac_thread_local_key_delete(key) == 0);
}

/* More live keys than libc has, each with a value in this thread */
static void many_keys_live_at_once(int count) {

    guac_thread_local_key_t* keys = malloc(count * sizeof(*keys));
    CHECK(keys != NULL);

    for (int i = 0; i < count; i++)
        CHECK(guac_thread_local_key_create(&keys[i], NULL) == 0);
    for (int i = 0; i < count; i++)
        CHECK(guac_thread_local_setspecific(keys[i], VALUE(i + 1)) == 0);
    for (int i = 0; i < count; i++)
        CHECK(guac_thread_local_getspecific(keys[i]) == VALUE(i + 1));

    /* Neither deleting every other key nor creating new ones changes the others */
    for (int i = 0; i < count; i += 2)
        CHECK(guac_thread_local_key_delete(keys[i]) == 0);
    for (int i = 0; i < count; i += 2)
        CHECK(guac_thread_local_key_create(&keys[i], NULL) == 0);
    for (int i = 0; i < count; i++)
        CHECK(guac_thread_local_getspecific(keys[i])
                == (i % 2 == 0 ? NULL : VALUE(i + 1)));

    for (int i = 0; i < count; i++)
        CHECK(guac_thread_local_key_delete(keys[i]) == 0);

    free(keys);

}

int main(int argc, char** argv) {
    int quick = argc > 1 && strcmp(argv[1], "quick") == 0;
    errors_are_returned();
    a_deleted_key_is_dead();
    each_thread_has_its_own_value();
    many_keys_live_at_once(quick ? 2000 : 1000000);
    return 0;
}
