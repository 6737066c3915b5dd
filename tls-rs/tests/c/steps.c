/*
 * Which instructions a call executes: steps through calls in a child, and
 * prints a line for each instruction: the call, the library that the
 * instruction is in, and its address there.
 */

#define _GNU_SOURCE

#include "check.h"
#include "libguac.h"

#include <dlfcn.h>
#include <elf.h>
#include <pthread.h>
#include <string.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#define KEYS 12

static guac_thread_local_key_t keys[KEYS], key;
static pthread_key_t native[40], native_key;

static void get(void) {
    CHECK(guac_thread_local_getspecific(keys[5]) == VALUE(1));
}

static void set(void) {
    CHECK(guac_thread_local_setspecific(keys[5], VALUE(1)) == 0);
}

static void slot(void) {
    CHECK(*guac_thread_local_slot(keys[5]) == VALUE(1));
}

static void create(void) {
    CHECK(guac_thread_local_key_create(&key, NULL) == 0);
}

static void delete(void) {
    CHECK(guac_thread_local_key_delete(key) == 0);
}

static void first_value(void) {
    CHECK(guac_thread_local_setspecific(keys[5], VALUE(1)) == 0);
}

static void native_get(void) {
    CHECK(pthread_getspecific(native[39]) == VALUE(1));
}

static void native_set(void) {
    CHECK(pthread_setspecific(native[39], VALUE(1)) == 0);
}

static void native_create(void) {
    CHECK(pthread_key_create(&native_key, NULL) == 0);
}

static void native_delete(void) {
    CHECK(pthread_key_delete(native_key) == 0);
}

typedef void (*function)(void);

/* The calls, each with the function whose instructions count. The first is made before any value is set */
static const struct {
    const char* name;
    function call, counted;
} calls[] = {
    { "first_value", first_value, (function) guac_thread_local_setspecific },
    { "get", get, (function) guac_thread_local_getspecific },
    { "set", set, (function) guac_thread_local_setspecific },
    { "slot", slot, (function) guac_thread_local_slot },
    { "create", create, (function) guac_thread_local_key_create },
    { "delete", delete, (function) guac_thread_local_key_delete },
    { "pthread_get", native_get, (function) pthread_getspecific },
    { "pthread_set", native_set, (function) pthread_setspecific },
    { "pthread_create", native_create, (function) pthread_key_create },
    { "pthread_delete", native_delete, (function) pthread_key_delete },
};

#define CALLS (sizeof(calls) / sizeof(*calls))

static void in_child(void) {
    for (int i = 0; i < KEYS; i++)
        CHECK(guac_thread_local_key_create(&keys[i], NULL) == 0);
    for (int i = 0; i < 40; i++)
        CHECK(pthread_key_create(&native[i], NULL) == 0);
    CHECK(pthread_setspecific(native[39], VALUE(1)) == 0);
    CHECK(ptrace(PTRACE_TRACEME, 0, NULL, NULL) == 0);
    for (size_t i = 0; i < CALLS; i++) {
        CHECK(raise(SIGSTOP) == 0);
        calls[i].call();
        CHECK(raise(SIGSTOP) == 0);
        if (i == 0) {
            for (int j = 0; j < KEYS; j++)
                CHECK(guac_thread_local_setspecific(keys[j], VALUE(1)) == 0);
            create(); /* From now on the thread has a spare cell */
            delete();
        }
    }
    _exit(0);
}

/* The address of the next instruction, and the one that the call returns to if it is the call's first */
static uintptr_t next_instruction(pid_t child, uintptr_t* caller) {
    struct user_regs_struct registers;
    struct iovec all = { &registers, sizeof(registers) };
    CHECK(ptrace(PTRACE_GETREGSET, child, (void*) NT_PRSTATUS, &all) == 0);
#if defined(__x86_64__)
    *caller = (uintptr_t) ptrace(PTRACE_PEEKDATA, child, (void*) registers.rsp, NULL);
    return registers.rip;
#elif defined(__aarch64__)
    *caller = registers.regs[30];
    return registers.pc;
#endif
}

static void run_until_stopped(pid_t child, int request) {
    int status;
    CHECK(ptrace(request, child, NULL, NULL) == 0);
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFSTOPPED(status));
}

static void step_through(pid_t child, const char* name, uintptr_t counted) {
    uintptr_t caller, back, at;
    do
        run_until_stopped(child, PTRACE_SINGLESTEP);
    while ((at = next_instruction(child, &back)) != counted);
    for (; at != back; at = next_instruction(child, &caller)) {
        Dl_info library;
        CHECK(dladdr((void*) at, &library));
        printf("%s %s %lx\n", name, library.dli_fname, (unsigned long) (at - (uintptr_t) library.dli_fbase));
        run_until_stopped(child, PTRACE_SINGLESTEP);
    }
}

int main(void) {

    int status;
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0)
        in_child();

    CHECK(waitpid(child, &status, 0) == child);
    for (size_t i = 0; i < CALLS; i++) {
        CHECK(WIFSTOPPED(status));
        step_through(child, calls[i].name, (uintptr_t) calls[i].counted);
        run_until_stopped(child, PTRACE_CONT);
        CHECK(ptrace(PTRACE_CONT, child, NULL, NULL) == 0);
        CHECK(waitpid(child, &status, 0) == child);
    }
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    return 0;

}
