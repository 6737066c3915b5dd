/* A signal handler calls get, whatever it interrupts. It may even call set, which POSIX does not allow */

#define _GNU_SOURCE

#include "check.h"
#include "libguac.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/time.h>

#define KEYS 40

/* The values of the thread that is interrupted: those that handlers must read */
static struct {
    guac_thread_local_key_t key;
    void* value;
} known[8 * KEYS];
static volatile int known_count;

/* Keys that are deleted */
static guac_thread_local_key_t dead[KEYS];
static volatile int deleted;

/* The key that the interrupted thread is setting, and its new value */
static volatile guac_thread_local_key_t changing;
static void* volatile next_value;

static volatile sig_atomic_t interrupted, wrong;

static void check_values(int signal) {

    (void) signal;
    interrupted++;

    for (int i = 0; i < known_count; i++) {
        void* value = guac_thread_local_getspecific(known[i].key);
        if (value != known[i].value && !(known[i].key == changing && value == next_value))
            wrong++;
    }

    void* value = guac_thread_local_getspecific(changing);
    if (value != NULL && value != next_value)
        wrong++;

    for (int i = 0; i < deleted; i++)
        if (guac_thread_local_getspecific(dead[i]) != NULL)
            wrong++;

}

static void handle(int signal, void (*handler)(int)) {
    struct sigaction action;
    memset(&action, 0, sizeof(action));
    action.sa_handler = handler;
    CHECK(sigaction(signal, &action, NULL) == 0);
}

static void set(guac_thread_local_key_t key, int number) {
    next_value = VALUE(number);
    changing = key;
    CHECK(guac_thread_local_setspecific(key, VALUE(number)) == 0);
    known[known_count].key = key;
    known[known_count].value = VALUE(number);
    known_count++;
    changing = 0;
}

static void create(guac_thread_local_key_t keys[], int count) {
    for (int i = 0; i < count; i++)
        CHECK(guac_thread_local_key_create(&keys[i], NULL) == 0);
}

/* Deletes keys which are those that were set last */
static void delete(guac_thread_local_key_t keys[], int count) {
    known_count -= count;
    for (int i = 0; i < count; i++)
        CHECK(guac_thread_local_key_delete(keys[i]) == 0);
}

/* Slots are used again, tables grow, and, unless keys are kept, tables shrink */
static void use_keys(int count, int keep) {

    guac_thread_local_key_t later[KEYS], other[KEYS];

    create(dead, count);
    for (int i = 0; i < count; i++)
        set(dead[i], 1000 + i);
    delete(dead, count);
    deleted = count;

    /* The former get the cells of the dead keys, the latter their generation */
    create(later, count);
    create(other, count);
    for (int i = 0; i < count; i++)
        set(later[i], 3000 + i);
    for (int i = 0; i < count; i++)
        set(other[i], 2000 + i);
    deleted = 0;

    if (!keep) {
        delete(other, count);
        delete(later, count);
    }

}

static void the_timer_interrupts(int times) {
    struct itimerval every_50_us = { { 0, 50 }, { 0, 50 } }, never = { { 0, 0 }, { 0, 0 } };
    handle(SIGALRM, check_values);
    interrupted = known_count = 0;
    CHECK(setitimer(ITIMER_REAL, &every_50_us, NULL) == 0);
    while (interrupted < times)
        use_keys(KEYS, 0);
    CHECK(setitimer(ITIMER_REAL, &never, NULL) == 0);
    CHECK(wrong == 0);
}

#ifdef __x86_64__

/* With the trap flag set, each instruction ends with a SIGTRAP */
#define FLAGS(change) \
    __asm__ volatile("lea -128(%%rsp), %%rsp; pushfq; " change ", (%%rsp); popfq; lea 128(%%rsp), %%rsp" \
            ::: "memory", "cc")

static void* step(void* data) {
    int count = (int) (intptr_t) data;
    interrupted = known_count = 0;
    FLAGS("orq $0x100");
    use_keys(count, 1);
    use_keys(count, 1);
    FLAGS("andq $~0x100");
    CHECK(interrupted > 100 * count);
    CHECK(wrong == 0);
    known_count = 0;
    return NULL;
}

/* In new threads, whose tables are small and soon full. Those with many keys allocate several tables */
static void each_instruction_is_interrupted(void) {
    handle(SIGTRAP, check_values);
    for (int count = 1; count <= 13; count += 3) {
        pthread_t thread;
        CHECK(pthread_create(&thread, NULL, step, VALUE(count)) == 0);
        CHECK(pthread_join(thread, NULL) == 0);
    }
}

/* Keys for the interrupted thread, and for handlers */
static guac_thread_local_key_t keys[2 * KEYS], counted;
static int added, refused, count;

/* The number of the interrupt whose handler sets values: not all of them, or the table would be copied for ever */
static int next_set;
static unsigned int seed;

static void set_values(int signal) {

    check_values(signal);
    if (guac_thread_local_getspecific(counted) != VALUE(count))
        wrong++;

    if (interrupted < next_set)
        return;
    seed = seed * 1664525 + 1013904223;
    next_set = interrupted + 1 + (int) (seed >> 8) % 3000;

    if (guac_thread_local_setspecific(counted, VALUE(++count)) != 0)
        wrong++;

    if (added < KEYS) {
        guac_thread_local_key_t key = keys[KEYS + added];
        int error = guac_thread_local_setspecific(key, VALUE(4000 + added));
        if (error == 0) {
            known[known_count].key = key;
            known[known_count].value = VALUE(4000 + added);
            known_count++;
            added++;
        }
        else if (error == ENOMEM && guac_thread_local_getspecific(key) == NULL)
            refused++;
        else
            wrong++;
    }

}

static int destroyed;

static void destroy(void* value) {
    CHECK(value != NULL);
    destroyed++;
}

static void* step_and_set(void* data) {
    interrupted = known_count = added = refused = destroyed = next_set = 0;
    count = 1;
    CHECK(guac_thread_local_setspecific(counted, VALUE(1)) == 0);
    for (int i = 0; i < KEYS; i++) {
        FLAGS("orq $0x100");
        CHECK(guac_thread_local_setspecific(keys[i], VALUE(1000 + i)) == 0);
        FLAGS("andq $~0x100");
        known[known_count].key = keys[i];
        known[known_count].value = VALUE(1000 + i);
        known_count++;
    }
    CHECK(guac_thread_local_getspecific(counted) == VALUE(count));
    check_values(0);
    CHECK(wrong == 0);
    CHECK(added > 0);
    CHECK(refused > 0);
    return data;
}

/* POSIX leaves this undefined. No value is lost, and no memory is corrupted */
static void a_signal_handler_may_set_values_at_any_time(void) {
    pthread_t thread;
    handle(SIGTRAP, set_values);
    CHECK(guac_thread_local_key_create(&counted, destroy) == 0);
    for (int i = 0; i < 2 * KEYS; i++)
        CHECK(guac_thread_local_key_create(&keys[i], destroy) == 0);
    for (int i = 0; i < 4; i++) {
        CHECK(pthread_create(&thread, NULL, step_and_set, NULL) == 0);
        CHECK(pthread_join(thread, NULL) == 0);
        CHECK(destroyed == 1 + KEYS + added);
    }
    for (int i = 0; i < 2 * KEYS; i++)
        CHECK(guac_thread_local_key_delete(keys[i]) == 0);
    CHECK(guac_thread_local_key_delete(counted) == 0);
}

#else

static void each_instruction_is_interrupted(void) {
    fprintf(stderr, "SKIPPED: single steps are for x86_64\n");
}

static void a_signal_handler_may_set_values_at_any_time(void) {
}

#endif

int main(int argc, char** argv) {

    /* Valgrind does not support single steps */
    int quick = argc > 1 && strcmp(argv[1], "quick") == 0;

    if (!quick) {
        each_instruction_is_interrupted();
        a_signal_handler_may_set_values_at_any_time();
    }
    the_timer_interrupts(quick ? 50 : 2000);
    return 0;

}
