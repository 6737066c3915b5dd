/* How many threads keep a socket alive, and how long does it stay silent? */

#include <guacamole/socket.h>

#include <dirent.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static volatile double heard;

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

static ssize_t hear(guac_socket* socket, const void* data, size_t length) {
    if (memchr(data, ';', length) != NULL)
        heard = now();
    return length;
}

static int count_threads(void) {
    int count = 0;
    DIR* tasks = opendir("/proc/self/task");
    struct dirent* task;
    while ((task = readdir(tasks)) != NULL)
        count += task->d_name[0] != '.';
    closedir(tasks);
    return count;
}

int main(void) {

    guac_socket* socket = guac_socket_alloc();
    socket->write_handler = hear;

    int before = count_threads();
    guac_socket_require_keep_alive(socket);
    guac_socket_require_keep_alive(socket);
    printf("threads: %d\n", count_threads() - before);

    /* The last output comes a moment after the keep-alive has begun */
    usleep(200000);
    guac_socket_write_string(socket, "4.sync,1.5;");
    double last = heard;

    while (heard == last)
        usleep(10000);
    printf("silent for %.0f s\n", heard - last);

    guac_socket_free(socket);
    printf("threads left: %d\n", count_threads() - before);
    return 0;

}
