/* A library that has a process see 64 processors. */

#define _GNU_SOURCE

#include <dlfcn.h>
#include <sched.h>
#include <string.h>
#include <unistd.h>

#define CORES 64

int sched_getaffinity(pid_t pid, size_t size, cpu_set_t* set) {
    memset(set, 0, size);
    for (int i = 0; i < CORES; i++)
        CPU_SET_S(i, size, set);
    return 0;
}

long sysconf(int name) {
    if (name == _SC_NPROCESSORS_ONLN || name == _SC_NPROCESSORS_CONF)
        return CORES;
    long (*next)(int) = (long (*)(int)) dlsym(RTLD_NEXT, "sysconf");
    return next(name);
}
