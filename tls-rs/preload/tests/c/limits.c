/* Numbers that are no keys, the largest number of keys, and behaviour when memory runs out */

#include "check.h"

#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <sys/resource.h>

#define MOST 1048543

static pthread_key_t keys[MOST + 1];
static pthread_key_t other;

static void keys_fit_into_an_int(void) {
    /* More often than a cell can be used */
    for (int i = 0; i < 5000; i++) {
        pthread_key_t key;
        CHECK(pthread_key_create(&key, NULL) == 0);
        CHECK(key > 0 && key <= INT_MAX);
        CHECK(pthread_setspecific(key, VALUE(1)) == 0);
        CHECK(pthread_setspecific(key | 1u << 31, VALUE(2)) == EINVAL);
        CHECK(pthread_getspecific(key | 1u << 31) == NULL);
        CHECK(pthread_getspecific(key) == VALUE(1));
        CHECK(pthread_key_delete(key) == 0);
        CHECK(pthread_key_delete(key) == EINVAL);
        CHECK(pthread_setspecific(key, VALUE(1)) == EINVAL);
        CHECK(pthread_getspecific(key) == NULL);
    }
    CHECK(pthread_getspecific((pthread_key_t) -1) == NULL);
    CHECK(pthread_setspecific((pthread_key_t) -1, VALUE(1)) == EINVAL);
}

/* Creates keys until it fails with this error, and returns how many */
static int create_all(int error) {
    for (int count = 0; ; count++) {
        int result = pthread_key_create(&keys[count], NULL);
        if (result != 0) {
            CHECK(result == error);
            return count;
        }
    }
}

static void set_limit(rlim_t bytes) {
    struct rlimit limit;
    CHECK(getrlimit(RLIMIT_AS, &limit) == 0);
    limit.rlim_cur = bytes == 0 ? limit.rlim_max : bytes;
    CHECK(setrlimit(RLIMIT_AS, &limit) == 0);
}

static void nothing_changes_when_memory_runs_out(void) {

    CHECK(pthread_key_create(&other, NULL) == 0);
    CHECK(pthread_setspecific(other, VALUE(7)) == 0);

    errno = 0;
    set_limit(1);
    int count = create_all(ENOMEM);
    set_limit(0);
    CHECK(count > 0);
    while (count < 100) /* more than the inline table has room for */
        CHECK(pthread_key_create(&keys[count++], NULL) == 0);

    int set = 0;
    set_limit(1);
    while (set < count && pthread_setspecific(keys[set], VALUE(set + 1)) == 0)
        set++;
    CHECK(set > 0 && set < count);
    CHECK(pthread_setspecific(keys[set], VALUE(1)) == ENOMEM);
    CHECK(pthread_getspecific(keys[set]) == NULL);
    CHECK(errno == 0);
    set_limit(0);
    for (int i = 0; i < set; i++)
        CHECK(pthread_getspecific(keys[i]) == VALUE(i + 1));
    CHECK(pthread_getspecific(other) == VALUE(7));
    CHECK(pthread_setspecific(keys[set], VALUE(set + 1)) == 0);
    CHECK(pthread_getspecific(keys[set]) == VALUE(set + 1));

    while (count > 0)
        CHECK(pthread_key_delete(keys[--count]) == 0);

}

static void there_are_a_million_and_then_no_more(void) {
    int count = create_all(EAGAIN);
    /* Libc may have created a few, and some cells have been used up above */
    CHECK(count > MOST - 20 && count <= MOST);
    CHECK(pthread_key_delete(keys[0]) == 0);
    CHECK(pthread_key_create(&keys[0], NULL) == 0);
    CHECK(pthread_getspecific(other) == VALUE(7));
}

int main(void) {
    keys_fit_into_an_int();
    nothing_changes_when_memory_runs_out();
    there_are_a_million_and_then_no_more();
    return 0;
}
