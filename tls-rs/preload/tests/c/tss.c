/* C11's names for the same keys */

#include "check.h"

#include <pthread.h>
#include <threads.h>

static tss_t key, again;
static int destroyed;

static void destroy(void* value) {
    destroyed++;
    if (destroyed < 3)
        CHECK(tss_set(key, value) == thrd_success);
}

static int run(void* data) {
    CHECK(tss_get(key) == NULL);
    CHECK(tss_set(key, data) == thrd_success);
    CHECK(tss_get(key) == data);
    CHECK(pthread_getspecific(key) == data);
    CHECK(tss_set(again, data) == thrd_success);
    return 0;
}

int main(void) {

    thrd_t thread;

    for (int i = 0; i < 2000; i++)
        CHECK(tss_create(&again, NULL) == thrd_success);
    CHECK(tss_create(&key, destroy) == thrd_success);
    CHECK(thrd_create(&thread, run, VALUE(5)) == thrd_success);
    CHECK(thrd_join(thread, NULL) == thrd_success);
    CHECK(destroyed == 3);

    tss_delete(key);
    CHECK(tss_get(key) == NULL);
    CHECK(tss_set(key, VALUE(1)) == thrd_error);
    return 0;

}
