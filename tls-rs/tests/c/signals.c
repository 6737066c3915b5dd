/* A signal handler calls get, whatever it interrupts */

#define _GNU_SOURCE

#include "check.h"
#include "libguac.h"

#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/time.h>

#define KEYS 40

/* A key that always has a value, and keys that are deleted */
static guac_thread_local_key_t watched, dead[KEYS];

/* The key that the interrupted thread is setting, its new value, and how many keys it has deleted */
static volatile guac_thread_local_key_t changing;
static void* volatile next_value;
static volatile int deleted;

static volatile sig_atomic_t interrupted, wrong;

static void check_values(int signal) {

    (void) signal;
    interrupted++;

    if (guac_thread_local_getspecific(watched) != VALUE(1))
        wrong++;

    void* value = guac_thread_local_getspecific(changing);
    if (value != NULL && value != next_value)
        wrong++;

    for (int i = 0; i < deleted; i++)
        if (guac_thread_local_getspecific(dead[i]) != NULL)
            wrong++;

}

static void handle(int signal) {
    struct sigaction action;
    memset(&action, 0, sizeof(action));
    action.sa_handler = check_values;
    CHECK(sigaction(signal, &action, NULL) == 0);
}

static void set(guac_thread_local_key_t key, int number) {
    next_value = VALUE(number);
    changing = key;
    CHECK(guac_thread_local_setspecific(key, VALUE(number)) == 0);
    changing = 0;
}

static void create(guac_thread_local_key_t keys[], int count) {
    for (int i = 0; i < count; i++)
        CHECK(guac_thread_local_key_create(&keys[i], NULL) == 0);
}

static void delete(guac_thread_local_key_t keys[], int count) {
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
    for (int i = 0; i < count; i++) {
        set(other[i], 2000 + i);
        set(later[i], 3000 + i);
    }
    deleted = 0;

    if (!keep) {
        delete(other, count);
        delete(later, count);
    }

}

static void the_timer_interrupts(int times) {
    struct itimerval every_50_us = { { 0, 50 }, { 0, 50 } }, never = { { 0, 0 }, { 0, 0 } };
    handle(SIGALRM);
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
    CHECK(guac_thread_local_setspecific(watched, VALUE(1)) == 0);
    interrupted = 0;
    FLAGS("orq $0x100");
    use_keys(count, 1);
    use_keys(count, 1);
    FLAGS("andq $~0x100");
    CHECK(interrupted > 100 * count);
    CHECK(wrong == 0);
    return NULL;
}

/* In new threads, whose tables are small and soon full */
static void each_instruction_is_interrupted(void) {
    handle(SIGTRAP);
    for (int count = 1; count <= 13; count += 3) {
        pthread_t thread;
        CHECK(pthread_create(&thread, NULL, step, VALUE(count)) == 0);
        CHECK(pthread_join(thread, NULL) == 0);
    }
}

#else

static void each_instruction_is_interrupted(void) {
    fprintf(stderr, "SKIPPED: single steps are for x86_64\n");
}

#endif

int main(int argc, char** argv) {

    /* Valgrind does not support single steps */
    int quick = argc > 1 && strcmp(argv[1], "quick") == 0;

    CHECK(guac_thread_local_key_create(&watched, NULL) == 0);
    CHECK(guac_thread_local_setspecific(watched, VALUE(1)) == 0);

    if (!quick)
        each_instruction_is_interrupted();
    the_timer_interrupts(quick ? 50 : 2000);

    CHECK(guac_thread_local_key_delete(watched) == 0);
    return 0;

}
