#include <stdio.h>
#include <sys/types.h>

/* Whether a thread of this process is blocked */
static int sleeps(pid_t tid) {
    char path[64], state = 0;
    snprintf(path, sizeof(path), "/proc/self/task/%d/stat", (int) tid);
    FILE* stat = fopen(path, "r");
    if (stat != NULL) {
        if (fscanf(stat, "%*d (%*[^)]) %c", &state) != 1)
            state = 0;
        fclose(stat);
    }
    return state == 'S';
}
