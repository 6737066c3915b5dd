/* CHECK() and VALUE(), for all tests */

#ifndef CHECK_H
#define CHECK_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#define CHECK(condition) \
    do { \
        if (!(condition)) { \
            fprintf(stderr, "%s:%d: %s: not true: %s\n", __FILE__, __LINE__, \
                    __func__, #condition); \
            abort(); \
        } \
    } while (0)

/* A value that is not NULL, made from a small number */
#define VALUE(number) ((void*) (intptr_t) (number))

#endif
