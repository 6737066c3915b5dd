/* Thread exit: what destructors may do, their order and number, and that no memory is left behind */

#define _GNU_SOURCE

#include "check.h"

#include <guacamole/thread-local.h>

#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define KEYS 40

static guac_thread_local_key_t key, keys[KEYS];
static pthread_key_t native;
static int calls, native_calls;

static void* run(void* (*start)(void*)) {
    pthread_t thread;
    void* result;
    calls = native_calls = 0;
    CHECK(pthread_create(&thread, NULL, start, NULL) == 0);
    CHECK(pthread_join(thread, &result) == 0);
    return result;
}

static void create_keys(guac_thread_local_destructor_t destructor) {
    for (int i = 0; i < KEYS; i++)
        CHECK(guac_thread_local_key_create(&keys[i], destructor) == 0);
}

static void delete_keys(void) {
    for (int i = 0; i < KEYS; i++)
        CHECK(guac_thread_local_key_delete(keys[i]) == 0);
}

static void* set_keys(void* data) {
    for (int i = 0; i < KEYS; i++)
        CHECK(guac_thread_local_setspecific(keys[i], VALUE(i + 1)) == 0);
    return data;
}

static void* set_key(void* data) {
    CHECK(guac_thread_local_setspecific(key, VALUE(7)) == 0);
    return data;
}

static void add_one(void* value) {
    CHECK(value == VALUE(1));
    calls++;
}

static int reached;

static void* use_keys_while_cancelled(void* data) {
    guac_thread_local_key_t mine;
    CHECK(pthread_cancel(pthread_self()) == 0);
    CHECK(guac_thread_local_key_create(&mine, NULL) == 0);
    for (int i = 0; i < KEYS; i++)
        CHECK(guac_thread_local_setspecific(keys[i], VALUE(i + 1)) == 0);
    CHECK(guac_thread_local_setspecific(mine, VALUE(7)) == 0);
    CHECK(guac_thread_local_getspecific(mine) == VALUE(7));
    CHECK(guac_thread_local_key_delete(mine) == 0);
    reached = 1;
    pthread_testcancel();
    return data;
}

static void no_function_is_a_cancellation_point(void) {
    create_keys(NULL);
    CHECK(run(use_keys_while_cancelled) == PTHREAD_CANCELED);
    CHECK(reached);
    delete_keys();
}

static volatile int started;

#if defined(__SANITIZE_ADDRESS__)
/* AddressSanitizer does not know that cancellation abandons frames. Has it forget what they used of the stack */
void __asan_unpoison_memory_region(const volatile void* start, size_t size);

static void forget_abandoned_frames(void* data) {
    (void) data;
    size_t used = 64 * 1024;
    __asan_unpoison_memory_region((char*) __builtin_frame_address(0) - used, used);
}
#else
static void forget_abandoned_frames(void* data) {
    (void) data;
}
#endif

static void* use_keys_until_cancelled(void* data) {

    guac_thread_local_key_t mine[KEYS];
    int count = *(int*) data;

    pthread_cleanup_push(forget_abandoned_frames, NULL);
    CHECK(pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, NULL) == 0);
    started = 1;
    for (;;) {
        for (int i = 0; i < count; i++) {
            CHECK(guac_thread_local_key_create(&mine[i], add_one) == 0);
            CHECK(guac_thread_local_setspecific(mine[i], VALUE(1)) == 0);
        }
        for (int i = 0; i < count; i++)
            CHECK(guac_thread_local_key_delete(mine[i]) == 0);
    }
    pthread_cleanup_pop(0);
    return NULL;

}

/* POSIX leaves this undefined. Keys may be lost, but no memory is corrupted */
static void a_thread_may_be_cancelled_at_any_time(int threads) {
    int counts[] = { 1, 3, 12, KEYS };
    for (int i = 0; i < threads; i++) {
        pthread_t thread;
        void* result;
        started = calls = 0;
        CHECK(pthread_create(&thread, NULL, use_keys_until_cancelled, &counts[i % 4]) == 0);
        while (!started)
            sched_yield();
        for (volatile int spins = i * 7919 % 20000; spins > 0; spins--)
            ;
        CHECK(pthread_cancel(thread) == 0);
        CHECK(pthread_join(thread, &result) == 0);
        CHECK(result == PTHREAD_CANCELED);
        CHECK(calls <= counts[i % 4]);
    }
}

/* A thread that blocks when it is cancelled, as those that libguac cancels */
static pthread_barrier_t blocked;

static void* set_keys_and_block(void* data) {
    set_keys(data);
    pthread_barrier_wait(&blocked);
    for (;;)
        pause();
    return data;
}

/* The thread has been cancelled already. That must not take effect again */
static void reach_a_cancellation_point(void* value) {
    pthread_testcancel();
    usleep(1);
    pthread_testcancel();
    CHECK(value != NULL);
    calls++;
}

static void destructors_run_to_their_end_in_a_cancelled_thread(void) {
    pthread_t thread;
    void* result;
    calls = 0;
    create_keys(reach_a_cancellation_point);
    CHECK(pthread_barrier_init(&blocked, NULL, 2) == 0);
    CHECK(pthread_create(&thread, NULL, set_keys_and_block, NULL) == 0);
    pthread_barrier_wait(&blocked);
    CHECK(pthread_cancel(thread) == 0);
    CHECK(pthread_join(thread, &result) == 0);
    CHECK(result == PTHREAD_CANCELED);
    CHECK(calls == KEYS);
    CHECK(pthread_barrier_destroy(&blocked) == 0);
    delete_keys();
}

/* Adds most values while thread exit walks over the table */
static void grow(void* value) {
    calls++;
    if (value == VALUE(1))
        for (int i = 1; i < KEYS; i++)
            CHECK(guac_thread_local_setspecific(keys[i], VALUE(i + 1)) == 0);
}

static void* set_first_key(void* data) {
    CHECK(guac_thread_local_setspecific(keys[0], VALUE(1)) == 0);
    return data;
}

static void a_destructor_may_outgrow_the_table(void) {
    create_keys(grow);
    run(set_first_key);
    CHECK(calls == KEYS);
    delete_keys();
}

static int report;

static void report_calls(void) {
    if (report)
        _exit(calls);
}

/* The process ends with its last thread, as if by exit(0) */
static void a_destructor_may_outgrow_the_table_in_the_main_thread(void) {
    int status;
    create_keys(grow);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        report = 1;
        calls = 0;
        set_first_key(NULL);
        pthread_exit(NULL);
    }
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == KEYS);
    delete_keys();
}

/* The keys by their index, which is in the lower bits */
static int by_index(const void* one, const void* other) {
    guac_thread_local_key_t left = *(const guac_thread_local_key_t*) one & 0xFFFFF;
    guac_thread_local_key_t right = *(const guac_thread_local_key_t*) other & 0xFFFFF;
    return (left > right) - (left < right);
}

static void create_sorted_keys(guac_thread_local_destructor_t destructor) {
    create_keys(destructor);
    qsort(keys, KEYS, sizeof(keys[0]), by_index);
}

static void be_next(void* value) {
    CHECK(value == VALUE(++calls));
}

static void* set_keys_from_last_to_first(void* data) {
    for (int i = KEYS; i > 0; i--)
        CHECK(guac_thread_local_setspecific(keys[i - 1], VALUE(i)) == 0);
    return data;
}

static void destructors_run_by_the_index_of_their_keys(void) {
    create_sorted_keys(be_next);
    run(set_keys);
    CHECK(calls == KEYS);
    run(set_keys_from_last_to_first);
    CHECK(calls == KEYS);
    delete_keys();
}

static int linked;

static void set_the_next_key(void* value) {
    CHECK(value == VALUE(++calls));
    if (calls < linked)
        CHECK(guac_thread_local_setspecific(keys[calls], VALUE(calls + 1)) == 0);
}

/* More keys than there are rounds, and than the thread's first table has room for */
static void a_chain_of_destructors_ends_in_one_round(void) {
    create_sorted_keys(set_the_next_key);
    for (linked = 1; linked <= KEYS; linked += 13) {
        run(set_first_key);
        CHECK(calls == linked);
    }
    delete_keys();
}

static void exit_again(void* value) {
    calls++;
    pthread_exit(value);
}

static void* set_five_keys(void* data) {
    for (int i = 0; i < 5; i++)
        CHECK(guac_thread_local_setspecific(keys[i], VALUE(9)) == 0);
    return data;
}

static void set_others_and_exit(void* value) {
    if (calls++ == 0)
        for (int i = 0; i < KEYS; i++)
            CHECK(guac_thread_local_setspecific(keys[i], VALUE(9)) == 0);
    pthread_exit(value);
}

static void set_others_and_be_cancelled(void* value) {
    if (calls++ == 0)
        for (int i = 0; i < KEYS; i++)
            CHECK(guac_thread_local_setspecific(keys[i], value) == 0);
    CHECK(pthread_cancel(pthread_self()) == 0);
    pthread_testcancel();
}

static void set_again_and_exit(void* value) {
    calls++;
    CHECK(guac_thread_local_setspecific(keys[0], value) == 0);
    pthread_exit(value);
}

/* POSIX leaves this undefined. Each value is destroyed all the same, those included that such a destructor has set. */
static void a_destructor_may_end_the_thread(void) {

    create_keys(exit_again);
    CHECK(run(set_five_keys) == VALUE(9));
    CHECK(calls == 5);
    delete_keys();

    create_keys(set_others_and_exit);
    CHECK(run(set_five_keys) == VALUE(9));
    CHECK(calls == KEYS + 1);
    delete_keys();

    /* If it was called for the thread's only value */
    create_keys(set_others_and_exit);
    CHECK(run(set_first_key) == VALUE(9));
    CHECK(calls == KEYS + 1);
    delete_keys();

    create_keys(set_others_and_be_cancelled);
    run(set_five_keys);
    CHECK(calls == KEYS + 1);
    delete_keys();

    /* With native keys, this thread would never end */
    create_keys(set_again_and_exit);
    CHECK(run(set_first_key) == VALUE(1));
    CHECK(calls == PTHREAD_DESTRUCTOR_ITERATIONS);
    delete_keys();

    /* A later thread that gets the same memory must find none of these values */
    create_keys(grow);
    run(set_first_key);
    CHECK(calls == KEYS);
    delete_keys();

}

static void set_native(void* value) {
    CHECK(pthread_getspecific(native) == VALUE(8));
    CHECK(pthread_setspecific(native, value) == 0);
    calls++;
}

static void find_nothing(void* value) {
    CHECK(value == VALUE(7));
    CHECK(guac_thread_local_getspecific(key) == NULL);
    CHECK(guac_thread_local_getspecific(keys[0]) == NULL);
    native_calls++;
}

static void* set_all(void* data) {
    CHECK(pthread_setspecific(native, VALUE(8)) == 0);
    CHECK(guac_thread_local_setspecific(keys[0], VALUE(6)) == 0); /* without a destructor */
    return set_key(data);
}

/* The library created its native key first, and both libcs call the destructor of the first key first */
static void destructors_run_before_those_of_native_keys(void) {
    CHECK(guac_thread_local_key_create(&key, set_native) == 0);
    create_keys(NULL);
    CHECK(pthread_key_create(&native, find_nothing) == 0);
    run(set_all);
    CHECK(calls == 1);
    CHECK(native_calls == 1);
    CHECK(pthread_key_delete(native) == 0);
    delete_keys();
    CHECK(guac_thread_local_key_delete(key) == 0);
}

static void set_again(void* value) {
    calls++;
    CHECK(guac_thread_local_setspecific(key, value) == 0);
}

static void set_both_again(void* value) {
    native_calls++;
    CHECK(pthread_setspecific(native, value) == 0);
    CHECK(guac_thread_local_setspecific(key, value) == 0);
}

static void* set_key_and_native(void* data) {
    CHECK(pthread_setspecific(native, VALUE(7)) == 0);
    return set_key(data);
}

/* Even if a native key's destructor sets values again in each of libc's rounds */
static void destructors_come_to_an_end(void) {
    CHECK(guac_thread_local_key_create(&key, set_again) == 0);
    CHECK(pthread_key_create(&native, set_both_again) == 0);
    run(set_key_and_native);
    CHECK(native_calls == PTHREAD_DESTRUCTOR_ITERATIONS);
    CHECK(calls == PTHREAD_DESTRUCTOR_ITERATIONS * PTHREAD_DESTRUCTOR_ITERATIONS);
    CHECK(pthread_key_delete(native) == 0);
    CHECK(guac_thread_local_key_delete(key) == 0);
}

static int allocated, freed, leaks;

static void free_value(void* value) {
    freed++;
    free(value);
}

static void* allocate(int count, void* data) {
    for (int i = 0; i < count; i++) {
        allocated++;
        CHECK(guac_thread_local_setspecific(keys[i], malloc(100)) == 0);
    }
    return data;
}

static void* allocate_three(void* data) {
    return allocate(3, data);
}

static void* allocate_all(void* data) {
    return allocate(KEYS, data);
}

static long resident_kib(void) {
    long pages;
    FILE* file = fopen("/proc/self/statm", "r");
    CHECK(file != NULL);
    CHECK(fscanf(file, "%*d %ld", &pages) == 1);
    CHECK(fclose(file) == 0);
    return pages * (sysconf(_SC_PAGESIZE) / 1024);
}

/* Whether a destructor has ended the thread */
static int has_ended;

static void free_and_end(void* value) {
    free_value(value);
    if (has_ended++ == 0) {
        allocate_all(NULL);
        pthread_exit(NULL);
    }
}

static guac_thread_local_key_t ending;

static void* allocate_and_end_in_a_destructor(void* data) {
    has_ended = 0;
    allocated++;
    CHECK(guac_thread_local_setspecific(ending, calloc(1, 100)) == 0);
    return data;
}

/* Threads whose values fit into the inline table, or do not, or have no destructor, or have one that ends the thread */
static void* volatile lost;

static void run_threads(int count) {
    for (int i = 0; i < count; i++) {
        switch (i % 4) {
            case 0: run(allocate_all); lost = leaks ? malloc(1) : NULL; break;
            case 1: run(set_key); break;
            case 2: run(allocate_and_end_in_a_destructor); break;
            default: run(allocate_three);
        }
    }
}

static void threads_leave_nothing_behind(int threads) {
    create_keys(free_value);
    CHECK(guac_thread_local_key_create(&key, NULL) == 0);
    CHECK(guac_thread_local_key_create(&ending, free_and_end) == 0);
    run_threads(threads / 50); /* until the memory of libc itself no longer grows */
    long before = resident_kib();
    run_threads(threads);
    long after = resident_kib();
    CHECK(freed == allocated);
    /* The smallest leak would be 32 bytes for each fourth thread */
    if (threads >= 100000)
        CHECK(after - before < threads / 4 * 32L / 1024);
    CHECK(guac_thread_local_key_delete(ending) == 0);
    CHECK(guac_thread_local_key_delete(key) == 0);
    delete_keys();
}

int main(int argc, char** argv) {
    int quick = argc > 1 && strcmp(argv[1], "quick") == 0;
    if (argc > 1 && strcmp(argv[1], "leak") == 0) {
        leaks = 1;
        threads_leave_nothing_behind(100000);
        return 0;
    }
    CHECK(atexit(report_calls) == 0);
#ifndef GUAC_TEST_ALL_KEYS_ARE_OURS
    destructors_run_before_those_of_native_keys(); /* first: no other test may use the native key before */
    destructors_come_to_an_end();
#endif
    no_function_is_a_cancellation_point();
    destructors_run_to_their_end_in_a_cancelled_thread();
    a_thread_may_be_cancelled_at_any_time(quick ? 100 : 4000);
    a_destructor_may_outgrow_the_table();
    a_destructor_may_outgrow_the_table_in_the_main_thread();
    destructors_run_by_the_index_of_their_keys();
    a_chain_of_destructors_ends_in_one_round();
    a_destructor_may_end_the_thread();
    threads_leave_nothing_behind(quick ? 200 : 100000);
    return 0;
}
