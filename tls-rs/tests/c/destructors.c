/* Destructors: when they run, how often, and what they may do */

#define _GNU_SOURCE

#include "check.h"
#include "libguac.h"

#include <limits.h>
#include <pthread.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static guac_thread_local_key_t key, other;

/* How often the destructor of key was called, and its last value */
static int calls;
static void* seen;

static void note(void* value) {
    CHECK(guac_thread_local_getspecific(key) == NULL);
    calls++;
    seen = value;
}

static void run(void* (*start)(void*)) {
    pthread_t thread;
    calls = 0;
    seen = NULL;
    CHECK(pthread_create(&thread, NULL, start, NULL) == 0);
    CHECK(pthread_join(thread, NULL) == 0);
}

static void* set_and_return(void* data) {
    CHECK(guac_thread_local_setspecific(key, VALUE(7)) == 0);
    return data;
}

static void* set_and_exit(void* data) {
    CHECK(guac_thread_local_setspecific(key, VALUE(7)) == 0);
    pthread_exit(data);
}

static void* set_and_be_cancelled(void* data) {
    CHECK(guac_thread_local_setspecific(key, VALUE(7)) == 0);
    CHECK(pthread_cancel(pthread_self()) == 0);
    pthread_testcancel();
    CHECK(0);
    return data;
}

static void* set_and_unset(void* data) {
    CHECK(guac_thread_local_setspecific(key, VALUE(7)) == 0);
    CHECK(guac_thread_local_setspecific(key, NULL) == 0);
    return data;
}

static void* set_and_delete(void* data) {
    guac_thread_local_key_t mine;
    CHECK(guac_thread_local_key_create(&mine, note) == 0);
    CHECK(guac_thread_local_setspecific(mine, VALUE(7)) == 0);
    CHECK(guac_thread_local_key_delete(mine) == 0);
    return data;
}

static void destructors_run_however_a_thread_ends(void) {

    CHECK(guac_thread_local_key_create(&key, note) == 0);

    void* (*ends[])(void*) = { set_and_return, set_and_exit, set_and_be_cancelled };
    for (int i = 0; i < 3; i++) {
        run(ends[i]);
        CHECK(calls == 1);
        CHECK(seen == VALUE(7));
    }

    run(set_and_unset);
    CHECK(calls == 0);

    run(set_and_delete);
    CHECK(calls == 0);

    CHECK(guac_thread_local_key_delete(key) == 0);

}

/* How a thread ends, and the value that its cleanup handler has read */
static void* (*how_to_end)(void*);
static void* seen_by_handler;

static void clean_up(void* data) {
    (void) data;
    CHECK(calls == 0);
    seen_by_handler = guac_thread_local_getspecific(key);
}

static void* end_with_a_cleanup_handler(void* data) {
    pthread_cleanup_push(clean_up, data);
    how_to_end(data);
    pthread_cleanup_pop(0);
    return data;
}

static void destructors_run_after_cleanup_handlers(void) {

    CHECK(guac_thread_local_key_create(&key, note) == 0);

    void* (*ends[])(void*) = { set_and_exit, set_and_be_cancelled };
    for (int i = 0; i < 2; i++) {
        how_to_end = ends[i];
        seen_by_handler = NULL;
        run(end_with_a_cleanup_handler);
        CHECK(seen_by_handler == VALUE(7));
        CHECK(calls == 1);
    }

    CHECK(guac_thread_local_key_delete(key) == 0);

}

static int report;

static void tell(void* value) {
    CHECK(value == VALUE(7));
    CHECK(write(report, "x", 1) == 1);
    CHECK(pthread_equal(pthread_self(), *(pthread_t*) seen));
}

/* How often the destructor runs in the main thread of a process that ends by this function */
static int runs_in_main_thread(void (*end)(void)) {

    int ends[2], status, count = 0;
    char letter;
    CHECK(pipe(ends) == 0);

    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        static pthread_t self;
        self = pthread_self();
        seen = &self;
        report = ends[1];
        CHECK(guac_thread_local_key_create(&key, tell) == 0);
        CHECK(guac_thread_local_setspecific(key, VALUE(7)) == 0);
        end();
        CHECK(0);
    }

    CHECK(close(ends[1]) == 0);
    while (read(ends[0], &letter, 1) == 1)
        count++;
    CHECK(close(ends[0]) == 0);
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    return count;

}

static void leave_by_exit(void) {
    exit(0);
}

static void leave_by_pthread_exit(void) {
    pthread_exit(NULL);
}

static void destructors_run_in_the_main_thread_only_if_it_calls_pthread_exit(void) {
    CHECK(runs_in_main_thread(leave_by_exit) == 0);
    CHECK(runs_in_main_thread(leave_by_pthread_exit) == 1);
}

static void set_again(void* value) {
    calls++;
    CHECK(guac_thread_local_getspecific(key) == NULL);
    CHECK(guac_thread_local_setspecific(key, value) == 0);
    CHECK(guac_thread_local_getspecific(key) == value);
}

static void set_again_twice(void* value) {
    if (++calls < 3)
        CHECK(guac_thread_local_setspecific(key, value) == 0);
}

static void destructors_are_repeated_while_they_set_values(void) {

    CHECK(guac_thread_local_key_create(&key, set_again_twice) == 0);
    run(set_and_return);
    CHECK(calls == 3);
    CHECK(guac_thread_local_key_delete(key) == 0);

    CHECK(guac_thread_local_key_create(&key, set_again) == 0);
    run(set_and_return);
    CHECK(calls == PTHREAD_DESTRUCTOR_ITERATIONS);
    CHECK(guac_thread_local_key_delete(key) == 0);

}

static void set_other(void* value) {
    calls++;
    CHECK(guac_thread_local_setspecific(other, value) == 0);
}

static void set_key(void* value) {
    calls += 100;
    seen = value;
}

static void a_destructor_may_set_the_value_of_another_key(void) {
    CHECK(guac_thread_local_key_create(&key, set_other) == 0);
    CHECK(guac_thread_local_key_create(&other, set_key) == 0);
    run(set_and_return);
    CHECK(calls == 101);
    CHECK(seen == VALUE(7));
    CHECK(guac_thread_local_key_delete(key) == 0);
    CHECK(guac_thread_local_key_delete(other) == 0);
}

static int freed;

static void free_value(void* value) {
    freed++;
    free(value);
}

/* Creates, sets, reads and deletes enough keys to replace the thread's table, and more the second time */
static void use_many_keys(void* value) {

    guac_thread_local_key_t keys[600];
    int count = calls++ == 0 ? 200 : 600;

    for (int i = 0; i < count; i++) {
        CHECK(guac_thread_local_key_create(&keys[i], free_value) == 0);
        CHECK(guac_thread_local_setspecific(keys[i], malloc(8)) == 0);
    }
    for (int i = 0; i < 100; i++) {
        free(guac_thread_local_getspecific(keys[i]));
        CHECK(guac_thread_local_key_delete(keys[i]) == 0);
    }
    if (calls < 2)
        CHECK(guac_thread_local_setspecific(key, value) == 0);

}

static void a_destructor_may_do_anything_with_keys(void) {
    freed = 0;
    CHECK(guac_thread_local_key_create(&key, use_many_keys) == 0);
    run(set_and_return);
    CHECK(calls == 2);
    CHECK(freed == 100 + 500);
    CHECK(guac_thread_local_key_delete(key) == 0);
}

static guac_thread_local_key_t allocated[300];

static void* allocate_300(void* data) {
    for (int i = 0; i < 300; i++)
        CHECK(guac_thread_local_setspecific(allocated[i], malloc(8)) == 0);
    return data;
}

static void each_value_is_freed_once(void) {
    for (int i = 0; i < 300; i++)
        CHECK(guac_thread_local_key_create(&allocated[i], free_value) == 0);
    freed = 0;
    for (int i = 0; i < 10; i++)
        run(allocate_300);
    CHECK(freed == 3000);
    for (int i = 0; i < 300; i++)
        CHECK(guac_thread_local_key_delete(allocated[i]) == 0);
}

static void* set_300(void* data) {
    for (int i = 0; i < 300; i++)
        CHECK(guac_thread_local_setspecific(allocated[i], VALUE(i + 1)) == 0);
    return data;
}

/* A leak checker reports it if the memory of the thread's table is not freed */
static void a_threads_memory_is_freed_without_destructors(void) {
    for (int i = 0; i < 300; i++)
        CHECK(guac_thread_local_key_create(&allocated[i], NULL) == 0);
    run(set_300);
    for (int i = 0; i < 300; i++)
        CHECK(guac_thread_local_key_delete(allocated[i]) == 0);
}

static pthread_key_t native;

/* Sets a value in libc's second round, after our destructors have run */
static void set_from_native(void* value) {
    if (value == VALUE(8))
        CHECK(pthread_setspecific(native, VALUE(9)) == 0);
    else {
        CHECK(calls == 1);
        CHECK(guac_thread_local_getspecific(key) == NULL);
        CHECK(guac_thread_local_setspecific(key, value) == 0);
    }
}

static void* set_both(void* data) {
    CHECK(pthread_setspecific(native, VALUE(8)) == 0);
    return set_and_return(data);
}

static void values_from_another_librarys_destructor_are_not_lost(void) {
    CHECK(guac_thread_local_key_create(&key, note) == 0);
    CHECK(pthread_key_create(&native, set_from_native) == 0);
    run(set_both);
    CHECK(calls == 2);
    CHECK(seen == VALUE(9));
    CHECK(pthread_key_delete(native) == 0);
    CHECK(guac_thread_local_key_delete(key) == 0);
}

static void read_error(void* value) {
    CHECK(value == VALUE(7));
    CHECK(*guac_test_error() == GUAC_STATUS_NO_MEMORY);
    CHECK(strcmp(*guac_test_error_message(), "of this thread") == 0);
    calls++;
}

static void* set_error(void* data) {
    CHECK(*guac_test_error() == GUAC_STATUS_SUCCESS);
    CHECK(*guac_test_error_message() == NULL);
    *guac_test_error() = GUAC_STATUS_NO_MEMORY;
    *guac_test_error_message() = "of this thread";
    CHECK(pthread_setspecific(native, VALUE(7)) == 0);
    return set_and_return(data);
}

/* In a destructor of ours, and in one of a native key */
static void the_error_is_there_in_destructors(void) {
    *guac_test_error_message() = "of the main thread";
    CHECK(guac_thread_local_key_create(&key, read_error) == 0);
    CHECK(pthread_key_create(&native, read_error) == 0);
    run(set_error);
    CHECK(calls == 2);
    CHECK(*guac_test_error() == GUAC_STATUS_SUCCESS);
    CHECK(strcmp(*guac_test_error_message(), "of the main thread") == 0);
    CHECK(pthread_key_delete(native) == 0);
    CHECK(guac_thread_local_key_delete(key) == 0);
}

/* The library has created its native key when it was loaded */
static void destructors_run_if_libc_has_no_key_left(void) {

    pthread_key_t keys[PTHREAD_KEYS_MAX];
    int count = 0;
    while (count < PTHREAD_KEYS_MAX && pthread_key_create(&keys[count], NULL) == 0)
        count++;
    CHECK(count < PTHREAD_KEYS_MAX);

    CHECK(guac_thread_local_key_create(&key, note) == 0);
    run(set_and_return);
    CHECK(calls == 1);
    CHECK(guac_thread_local_key_delete(key) == 0);

    while (count > 0)
        CHECK(pthread_key_delete(keys[--count]) == 0);

}

int main(void) {
#ifndef GUAC_TEST_ALL_KEYS_ARE_OURS
    destructors_run_if_libc_has_no_key_left(); /* first: no other test may use the native key before */
#endif
    destructors_run_however_a_thread_ends();
    destructors_run_after_cleanup_handlers();
    destructors_run_in_the_main_thread_only_if_it_calls_pthread_exit();
    destructors_are_repeated_while_they_set_values();
    a_destructor_may_set_the_value_of_another_key();
    a_destructor_may_do_anything_with_keys();
    each_value_is_freed_once();
    a_threads_memory_is_freed_without_destructors();
    values_from_another_librarys_destructor_are_not_lost();
    the_error_is_there_in_destructors();
    return 0;
}
