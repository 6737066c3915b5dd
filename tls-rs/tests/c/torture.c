/*
 * Forks from a process whose threads create, delete, set and exit all the
 * time. Arguments: threads, children, and the seconds after which a child
 * counts as hung. Prints how many children hung and how many failed, and ends
 * after the first that hung.
 */

#define _POSIX_C_SOURCE 200809L

#include "check.h"

#include <guacamole/thread-local.h>

#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

/* More than the inline table has room for */
#define KEYS 20

static guac_thread_local_key_t common;
static volatile int stop;
static int is_child, destroyed;

static void destroy(void* value) {
    destroyed = 1;
    free(value);
}

static void use_keys(void) {

    guac_thread_local_key_t keys[KEYS];

    for (int i = 0; i < KEYS; i++) {
        CHECK(guac_thread_local_key_create(&keys[i], destroy) == 0);
        CHECK(guac_thread_local_getspecific(keys[i]) == NULL);
        CHECK(guac_thread_local_setspecific(keys[i], VALUE(i + 1)) == 0);
    }
    for (int i = 0; i < KEYS; i++) {
        CHECK(guac_thread_local_getspecific(keys[i]) == VALUE(i + 1));
        CHECK(guac_thread_local_key_delete(keys[i]) == 0);
    }

}

static void* live_shortly(void* data) {
    CHECK(guac_thread_local_setspecific(common, calloc(1, 1)) == 0);
    use_keys();
    return data;
}

static void* live(void* data) {
    while (!stop) {
        pthread_t thread;
        for (int i = 0; i < 50; i++)
            use_keys();
        CHECK(pthread_create(&thread, NULL, live_shortly, NULL) == 0);
        CHECK(pthread_join(thread, NULL) == 0);
    }
    return data;
}

/* The last step of a child: its only thread has exited */
static void check_destroyed(void) {
    if (is_child && !destroyed)
        _exit(1);
}

static void be_child(void* value, int seconds) {
    is_child = 1;
    destroyed = 0;
    alarm(seconds);
    CHECK(guac_thread_local_getspecific(common) == value);
    for (int i = 0; i < 3; i++)
        use_keys();
    CHECK(guac_thread_local_getspecific(common) == value);
    pthread_exit(NULL);
}

int main(int argc, char** argv) {

    CHECK(argc == 4);
    int threads = atoi(argv[1]), children = atoi(argv[2]), seconds = atoi(argv[3]);
    int hung = 0, wrong = 0, forked = 0;

    pthread_t* others = calloc(threads, sizeof(*others));
    void* value = calloc(1, 1);
    CHECK(others != NULL && value != NULL);
    CHECK(atexit(check_destroyed) == 0);
    CHECK(guac_thread_local_key_create(&common, destroy) == 0);
    CHECK(guac_thread_local_setspecific(common, value) == 0);

    for (int i = 0; i < threads; i++)
        CHECK(pthread_create(&others[i], NULL, live, NULL) == 0);

    while (forked < children && hung == 0) {
        int status;
        pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0)
            be_child(value, seconds);
        forked++;
        CHECK(waitpid(child, &status, 0) == child);
        if (WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM)
            hung++;
        else if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
            wrong++;
    }

    printf("%d children of %d threads: %d hung, %d wrong\n", forked, threads, hung, wrong);

    /* The parent might hang as well */
    if (hung != 0) {
        fflush(stdout);
        _exit(2);
    }

    stop = 1;
    for (int i = 0; i < threads; i++)
        CHECK(pthread_join(others[i], NULL) == 0);
    CHECK(guac_thread_local_setspecific(common, NULL) == 0);
    free(value);
    free(others);
    return wrong == 0 ? 0 : 3;

}
