/* A drive of RDP, as a user and a server see it. `drive DIR` fills the directory, and prints what both receive. `drive DIR lease`
 * prints whether a server can open a file that another process has a lease of, and one that a FIFO then replaces. `drive DIR
 * limit` prints what becomes of a file that is opened while somebody else opens the last one, and how many files are taken for
 * open once two threads have opened and closed many. */

#define _GNU_SOURCE

#include "config.h"

#include "channels/rdpdr/rdpdr-fs-messages-dir-info.h"
#include "channels/rdpdr/rdpdr.h"
#include "download.h"
#include "fs.h"
#include "rdp.h"
#include "unicode.h"

#include <guacamole/client.h>
#include <guacamole/object.h>
#include <guacamole/protocol.h>
#include <guacamole/socket.h>
#include <guacamole/stream.h>
#include <guacamole/user.h>
#include <winpr/file.h>
#include <winpr/nt.h>
#include <winpr/stream.h>

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define FILES 300
#define DOWNLOADS 200
#define LONG_NAME 200

/* What a user has received, by these functions in place of libguac's. */
static char received[1 << 20];
static size_t received_length;
static guac_stream* body;
static int has_ended;

int guac_protocol_send_body(guac_socket* socket, const guac_object* object, const guac_stream* stream,
        const char* mimetype, const char* name) {
    (void) socket; (void) object; (void) mimetype; (void) name;
    body = (guac_stream*) stream;
    return 0;
}

int guac_protocol_send_blob(guac_socket* socket, const guac_stream* stream, const void* data, int count) {
    (void) socket; (void) stream;
    memcpy(received + received_length, data, count);
    received_length += count;
    return 0;
}

int guac_protocol_send_end(guac_socket* socket, const guac_stream* stream) {
    (void) socket; (void) stream;
    has_ended = 1;
    return 0;
}

/* What the server has received, likewise. */
static wStream* sent;

void guac_rdp_common_svc_write(guac_rdp_common_svc* svc, wStream* output_stream) {
    (void) svc;
    sent = output_stream;
}

/* How often something was closed that was not open. */
static int closed_twice;

int close(int fd) {
    int result = syscall(SYS_close, fd);
    closed_twice += result != 0;
    return result;
}

/* Returns whether there is such a file, after the user has received all of it. */
static int receive(guac_user* user, guac_object* object, char* name) {
    body = NULL;
    has_ended = 0;
    received_length = 0;
    guac_rdp_download_get_handler(user, object, name);
    if (body == NULL)
        return 0;
    while (!has_ended)
        body->ack_handler(user, body, "OK", GUAC_PROTOCOL_STATUS_SUCCESS);
    return 1;
}

/* Takes a lease of a file, says whether it could, and gives the lease up when somebody else opens the file. */
static void keep_lease(const char* name, int result) {
    sigset_t broken;
    sigemptyset(&broken);
    sigaddset(&broken, SIGIO);
    sigprocmask(SIG_BLOCK, &broken, NULL);
    int fd = open(name, O_CREAT | O_RDONLY, 0600);
    char taken = fcntl(fd, F_SETLEASE, F_RDLCK) == 0;
    if (write(result, &taken, 1) != 1 || !taken)
        _exit(1);
    int signal;
    sigwait(&broken, &signal);
    fcntl(fd, F_SETLEASE, F_UNLCK);
    _exit(0);
}

/* Returns whether another process has a lease of the file by now. */
static int has_lease(const char* name) {
    int result[2];
    char taken = 0;
    if (pipe(result))
        return 0;
    signal(SIGCHLD, SIG_IGN);
    if (fork() == 0)
        keep_lease(name, result[1]);
    return read(result[0], &taken, 1) == 1 && taken;
}

/* The path of a file that a FIFO replaces as soon as it was looked at, or NULL. */
static const char* replaced;

int stat(const char* path, struct stat* info) {
    int result = fstatat(AT_FDCWD, path, info, 0);
    if (replaced != NULL && strstr(path, replaced) != NULL && rename("fifo", path) == 0)
        printf("replaced\n");
    return result;
}

static void open_leased(guac_rdp_fs* fs) {
    if (!has_lease("leased") || !has_lease("replaced")) {
        printf("a lease cannot be had\n");
        return;
    }
    int id = guac_rdp_fs_open(fs, "/leased", GENERIC_WRITE, 0, FILE_OPEN, 0);
    printf("written to a file with a lease: %i\n", guac_rdp_fs_write(fs, id, 0, "written", 7));

    /* This process ends if it waits for the reader of the FIFO. */
    alarm(10);
    replaced = "/replaced";
    mkfifo("fifo", 0600);
    printf("opened as a FIFO: %i\n", guac_rdp_fs_open(fs, replaced, GENERIC_WRITE, 0, FILE_OPEN, 0) >= 0);
}

#define NAME "/a-file-with-a-name-as-files-have-them-1"
#define ROUNDS 200000

/* The drive on which another file is opened as soon as one is being opened, or NULL. */
static guac_rdp_fs* opens_another;

int open(const char* path, int flags, ...) {
    va_list arguments;
    va_start(arguments, flags);
    int mode = flags & O_CREAT ? va_arg(arguments, int) : 0;
    va_end(arguments);
    guac_rdp_fs* fs = opens_another;
    opens_another = NULL;
    if (fs != NULL)
        printf("somebody else: %s\n",
                guac_rdp_fs_open(fs, NAME, GENERIC_READ, 0, FILE_OPEN, 0) >= 0 ? "opened" : "refused");
    fflush(stdout);
    return syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}

static void* open_and_close(void* fs) {
    for (int i = 0; i < ROUNDS; i++)
        guac_rdp_fs_close(fs, guac_rdp_fs_open(fs, NAME, GENERIC_READ, 0, FILE_OPEN, 0));
    return NULL;
}

static void reach_limit(guac_rdp_fs* fs) {
    pthread_t threads[2];
    for (int i = 0; i < 2; i++)
        pthread_create(&threads[i], NULL, open_and_close, fs);
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    printf("taken for open: %i\n", fs->open_files);
    fs->open_files = 0;
    for (int i = 1; i < GUAC_RDP_FS_MAX_FILES; i++)
        guac_rdp_fs_open(fs, NAME, GENERIC_READ, 0, FILE_OPEN, 0);
    opens_another = fs;
    int id = guac_rdp_fs_open(fs, NAME, GENERIC_READ, 0, FILE_OPEN, 0);
    printf("at the limit: %s\n", id == GUAC_RDP_FS_ENFILE ? "refused" : "opened");
}

static void give_up(int signal) {
    (void) signal;
    _exit(0);
}

int main(int argc, char** argv) {

    if (chdir(argv[1]))
        return 1;
    for (int i = 0; i < FILES; i++) {
        char name[64];
        snprintf(name, sizeof(name), "a-file-with-a-name-as-files-have-them-%i", i);
        close(open(name, O_CREAT | O_WRONLY, 0600));
    }

    guac_client* client = guac_client_alloc();
    guac_rdp_client* rdp_client = calloc(1, sizeof(guac_rdp_client));
    guac_rdp_fs* fs = guac_rdp_fs_alloc(client, argv[1], 0, 0, 0);
    rdp_client->filesystem = fs;
    client->data = rdp_client;
    guac_user* user = guac_user_alloc();
    user->client = client;
    user->socket = guac_socket_alloc();
    guac_object* object = guac_user_alloc_object(user);

    if (argc > 2) {
        if (strcmp(argv[2], "lease") == 0)
            open_leased(fs);
        else
            reach_limit(fs);
        return 0;
    }

    receive(user, object, "/");
    received[received_length] = '\0';
    int listed = 0;
    for (char* at = received; (at = strstr(at, "a-file-")) != NULL; at++)
        listed++;
    printf("listed: %i\n", listed);
    printf("closed twice: %i\n", closed_twice);

    /* A server writes to a file that is closed, whose descriptor is another file's by now. */
    int id = guac_rdp_fs_open(fs, "/first", GENERIC_WRITE, 0, FILE_OPEN_IF, 0);
    guac_rdp_fs_close(fs, id);
    int other = open("other", O_CREAT | O_RDWR, 0600);
    guac_rdp_fs_write(fs, id, 0, "written", 7);
    printf("written to another file: %i\n", (int) lseek(other, 0, SEEK_END));

    /* A server asks for a long name. */
    char name[LONG_NAME + 2] = "/";
    memset(name + 1, 'n', LONG_NAME);
    id = guac_rdp_fs_open(fs, name, GENERIC_WRITE, 0, FILE_OPEN_IF, 0);
    guac_rdpdr_device device = { .data = fs };
    guac_rdpdr_iorequest request = { 0 };
    struct guac_rdp_common_svc svc = { .client = client };
    guac_rdpdr_fs_process_query_names_info(&svc, &device, &request, name + 1, id);
    int characters = 0;
    const BYTE* bytes = Stream_Buffer(sent);
    for (size_t i = 0; i + 1 < Stream_GetPosition(sent); i += 2)
        characters += bytes[i] == 'n' && bytes[i + 1] == 0;
    printf("characters of a name of %i: %i\n", LONG_NAME, characters);

    /* A server sends a path that is longer than its buffer. */
    uint16_t path[8] = { 'p', 'p', 'p', 'p', 'p', 'p', 'p', 'p' };
    char converted[8] = "-------";
    guac_rdp_utf16_to_utf8((const unsigned char*) path, 8, converted, 4);
    printf("behind the buffer: %s\n", converted + 4);

    int downloaded = 0;
    for (int i = 0; i < DOWNLOADS; i++)
        downloaded += receive(user, object, "/a-file-with-a-name-as-files-have-them-1");
    printf("downloaded: %i\n", downloaded);

    /* A user lists a directory with a FIFO, and a server opens it. */
    fflush(stdout);
    signal(SIGALRM, give_up);
    alarm(2);
    mkfifo("fifo", 0600);
    receive(user, object, "/");
    received[received_length] = '\0';
    int is_listed = strstr(received, "fifo") != NULL;
    id = guac_rdp_fs_open(fs, "/fifo", GENERIC_READ, 0, FILE_OPEN, 0);
    printf("a FIFO is listed: %i, opening it: %i\n", is_listed, id);

    return 0;

}
