/* What does a user receive who joins while another thread completes a frame, and do the two deadlock? */

#include <guacamole/client.h>
#include <guacamole/display.h>
#include <guacamole/socket.h>

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "sleeps.h"

static guac_display* display;

/* The instructions that the user receives */
static char received[1 << 20];
static size_t length;

static ssize_t receive(guac_socket* socket, const void* buf, size_t count) {
    (void) socket;
    if (length + count < sizeof(received)) {
        memcpy(received + length, buf, count);
        length += count;
    }
    return count;
}

/* The thread that completes a frame */
static pthread_t thread;
static volatile pid_t tid;

static void* complete(void* data) {
    tid = syscall(SYS_gettid);
    guac_display_end_frame(display);
    return data;
}

/* Starts that thread with the first instruction that the user receives, and waits until it is blocked */
static ssize_t receive_while_completing(guac_socket* socket, const void* buf, size_t count) {
    if (tid == 0 && pthread_create(&thread, NULL, complete, NULL) == 0) {
        while (tid == 0 || !sleeps(tid))
            usleep(1000);
    }
    return receive(socket, buf, count);
}

static void deadlock(int signal) {
    static const char message[] = "deadlocks\n";
    (void) signal;
    if (write(STDOUT_FILENO, message, sizeof(message) - 1)) {}
    _exit(0);
}

int main(void) {

    guac_client* client = guac_client_alloc();
    guac_socket* socket = guac_socket_alloc();
    display = guac_display_alloc(client);
    if (client == NULL || socket == NULL || display == NULL)
        return 1;

    socket->write_handler = receive;
    signal(SIGALRM, deadlock);

    /* The desktop has been enlarged since the last frame */
    guac_display_layer* layer = guac_display_default_layer(display);
    guac_display_layer_resize(layer, 64, 64);
    guac_display_end_frame(display);
    guac_display_layer_resize(layer, 64, 128);
    guac_display_dup(display, socket);
    printf("the last frame is 64x64, and the user is sent %s\n",
            strstr(received, "4.size,1.0,2.64,2.64;") ? "that"
            : strstr(received, "4.size,1.0,2.64,3.128;") ? "64x128" : received);
    fflush(stdout);

    alarm(3);
    socket->write_handler = receive_while_completing;
    guac_display_dup(display, socket);
    pthread_join(thread, NULL);
    printf("joins\n");
    return 0;

}
