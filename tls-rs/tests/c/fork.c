/* Forks while other threads create and delete keys. Each child must be able to create and delete keys at once. */

#define _POSIX_C_SOURCE 200809L

#include "check.h"
#include "libguac.h"

#include <pthread.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define THREADS 4

static volatile int stop;

static void* create_and_delete(void* data) {
    guac_thread_local_key_t keys[50];
    while (!stop) {
        for (int i = 0; i < 50; i++) {
            CHECK(guac_thread_local_key_create(&keys[i], NULL) == 0);
            CHECK(guac_thread_local_setspecific(keys[i], VALUE(1)) == 0);
        }
        for (int i = 0; i < 50; i++)
            CHECK(guac_thread_local_key_delete(keys[i]) == 0);
    }
    return data;
}

static void in_child(guac_thread_local_key_t inherited) {

    guac_thread_local_key_t keys[100];

    CHECK(guac_thread_local_getspecific(inherited) == VALUE(9));

    for (int i = 0; i < 100; i++) {
        CHECK(guac_thread_local_key_create(&keys[i], NULL) == 0);
        CHECK(guac_thread_local_getspecific(keys[i]) == NULL);
        CHECK(guac_thread_local_setspecific(keys[i], VALUE(i + 1)) == 0);
    }
    for (int i = 0; i < 100; i++) {
        CHECK(guac_thread_local_getspecific(keys[i]) == VALUE(i + 1));
        CHECK(guac_thread_local_key_delete(keys[i]) == 0);
    }

    CHECK(guac_thread_local_getspecific(inherited) == VALUE(9));
    CHECK(guac_thread_local_key_delete(inherited) == 0);

}

int main(int argc, char** argv) {

    int children = argc > 1 && strcmp(argv[1], "quick") == 0 ? 5 : 400;
    guac_thread_local_key_t key;
    pthread_t threads[THREADS];

    CHECK(guac_thread_local_key_create(&key, NULL) == 0);
    CHECK(guac_thread_local_setspecific(key, VALUE(9)) == 0);

    for (int i = 0; i < THREADS; i++)
        CHECK(pthread_create(&threads[i], NULL, create_and_delete, NULL) == 0);

    for (int i = 0; i < children; i++) {
        int status;
        pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) {
            alarm(10); /* kills a child that hangs, and the parent reports it */
            in_child(key);
            /* Not exit(): valgrind would report the memory of the parent's other threads as leaks */
            execle("/bin/sh", "sh", "-c", ":", (char*) NULL, (char*[]) { NULL });
            abort();
        }
        CHECK(waitpid(child, &status, 0) == child);
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }

    stop = 1;
    for (int i = 0; i < THREADS; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    CHECK(guac_thread_local_key_delete(key) == 0);
    return 0;

}
