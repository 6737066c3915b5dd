/* Behaviour when memory has run out. Linked with -Wl,--wrap=calloc */

#include "check.h"
#include "libguac.h"

#include <errno.h>
#include <limits.h>
#include <pthread.h>

void* __real_calloc(size_t count, size_t size);
void* __wrap_calloc(size_t count, size_t size);

/* How many more calls of calloc succeed, and how many there were */
static int left = INT_MAX, made;

void* __wrap_calloc(size_t count, size_t size) {
    made++;
    return left-- > 0 ? __real_calloc(count, size) : NULL;
}

/* In a thread that gets no memory, set succeeds while there is a free slot */
static void* without_memory(void* arg) {

    guac_thread_local_key_t* keys = arg;
    left = 0;

    /* Slots whose value is NULL again can be used for other keys */
    for (int i = 0; i < 24; i++) {
        CHECK(guac_thread_local_setspecific(keys[i], VALUE(1)) == 0);
        CHECK(guac_thread_local_setspecific(keys[i], NULL) == 0);
    }
    CHECK(guac_thread_local_key_delete(keys[0]) == 0);
    CHECK(guac_thread_local_setspecific(keys[24], VALUE(1)) == 0);
    CHECK(guac_thread_local_key_create(&keys[0], NULL) == 0);

    /* And so can those of deleted keys */
    for (int i = 0; i < 24; i++)
        CHECK(guac_thread_local_setspecific(keys[i], VALUE(1)) == 0);
    CHECK(guac_thread_local_key_delete(keys[0]) == 0);
    CHECK(guac_thread_local_setspecific(keys[25], VALUE(1)) == 0);
    for (int i = 1; i < 26; i++)
        CHECK(guac_thread_local_getspecific(keys[i]) == VALUE(1));
    CHECK(guac_thread_local_key_create(&keys[0], NULL) == 0);

    left = INT_MAX;
    return NULL;

}

int main(void) {

    guac_thread_local_key_t keys[1000], key = 5;
    int in_use = 0, failures = 0;

    /* As many keys as fit into 32 cells and three buckets, then into a fourth: a failure loses no cell */
    for (left = 3; guac_thread_local_key_create(&keys[in_use], NULL) == 0; in_use++)
        CHECK(in_use < 1000);
    CHECK(in_use == 32 + 64 + 128 + 256 - 1);
    for (left = 1; guac_thread_local_key_create(&keys[in_use], NULL) == 0; in_use++)
        CHECK(in_use < 1000);
    CHECK(in_use == 32 + 64 + 128 + 256 + 512 - 1);
    CHECK(guac_thread_local_key_create(&key, NULL) == ENOMEM);
    CHECK(key == 5);
    CHECK(guac_thread_local_key_delete(keys[0]) == 0);
    CHECK(guac_thread_local_key_create(&keys[0], NULL) == 0);

    left = INT_MAX;
    for (; in_use < 1000; in_use++)
        CHECK(guac_thread_local_key_create(&keys[in_use], NULL) == 0);

    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, without_memory, keys) == 0);
    CHECK(pthread_join(thread, NULL) == 0);

    /* A thread that uses keys one after another needs no memory */
    left = made = 0;
    for (int i = 0; i < 1000; i++) {
        CHECK(guac_thread_local_key_delete(keys[0]) == 0);
        CHECK(guac_thread_local_key_create(&keys[0], NULL) == 0);
        CHECK(guac_thread_local_setspecific(keys[0], VALUE(1)) == 0);
    }

    /* Neither do a few values, or NULL, or setting a value again */
    for (int i = 0; i < 16; i++)
        CHECK(guac_thread_local_setspecific(keys[i], VALUE(i + 1)) == 0);
    CHECK(guac_thread_local_setspecific(keys[500], NULL) == 0);
    CHECK(guac_thread_local_setspecific(keys[11], VALUE(12)) == 0);
    CHECK(guac_thread_local_getspecific(keys[500]) == NULL);
    CHECK(made == 0);

    /* Each time that memory runs out, all values stay */
    for (int i = 16; i < 1000; i++) {
        int error = guac_thread_local_setspecific(keys[i], VALUE(i + 1));
        if (error != 0) {
            failures++;
            CHECK(error == ENOMEM);
            CHECK(guac_thread_local_getspecific(keys[i]) == NULL);
            for (int j = 0; j < i; j++)
                CHECK(guac_thread_local_getspecific(keys[j]) == VALUE(j + 1));
            left = 1;
            CHECK(guac_thread_local_setspecific(keys[i], VALUE(i + 1)) == 0);
        }
    }
    CHECK(failures == 5);

    for (int i = 0; i < 1000; i++)
        CHECK(guac_thread_local_getspecific(keys[i]) == VALUE(i + 1));

    return 0;

}
