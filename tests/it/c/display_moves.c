/* How much of a display that moves is sent as images, and does a user see what was drawn? Its arguments are a scene, the number
 * of frames, and a seed. The scene "scroll" is text-like noise that moves up by 16 pixels with each frame. "torn" is the same, but
 * each frame is sent in two parts, as if a server's update had arrived in two. "random" moves, draws and resizes at random.
 * Prints what percentage of the pixels that were drawn were sent as images, and any frame that the user does not see as it was
 * drawn. */

#include <guacamole/client.h>
#include <guacamole/display.h>
#include <guacamole/rect.h>
#include <guacamole/socket.h>
#include <guacamole/user.h>

#include <cairo/cairo.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The size of the display, and where what moves is: not at multiples of 64 */
#define WIDTH 1024
#define HEIGHT 768
#define LEFT 200
#define TOP 150
#define AREA_WIDTH 600
#define AREA_HEIGHT 380

#define MAX_LAYERS 16
#define MAX_STREAMS 64

/* Stock does not have this. */
void guac_display_sync_pending_users(guac_display* display) __attribute__((weak));

static guac_client* client;
static guac_display* display;

/* What has been received and not yet parsed */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char* received;
static size_t received_length, received_size;

/* What the user sees of each layer and buffer, the rectangle that is about to be filled, and the images that are being received,
 * each by its stream */
static struct { int index; cairo_surface_t* surface; int x, y, width, height; } layers[MAX_LAYERS];
static struct { int layer, x, y; unsigned char* data; size_t length; } images[MAX_STREAMS], *image;

static unsigned int syncs;
static unsigned long sent, drawn;

static uint32_t seed;

static unsigned int below(unsigned int limit) {
    seed = seed * 1664525 + 1013904223;
    return (seed >> 8) % limit;
}

static void fail(const char* message) {
    printf("%s\n", message);
    fflush(stdout);
    _exit(0);
}

static ssize_t receive(guac_socket* socket, const void* buffer, size_t count) {
    (void) socket;
    pthread_mutex_lock(&lock);
    if (received_length + count > received_size) {
        received_size = 2 * (received_length + count);
        received = realloc(received, received_size);
    }
    memcpy(received + received_length, buffer, count);
    received_length += count;
    pthread_mutex_unlock(&lock);
    return count;
}

/* Keeps the instructions of different threads apart */
static pthread_mutex_t instruction_lock;

static void lock_instructions(guac_socket* socket) {
    (void) socket;
    pthread_mutex_lock(&instruction_lock);
}

static void unlock_instructions(guac_socket* socket) {
    (void) socket;
    pthread_mutex_unlock(&instruction_lock);
}

/* The number of what is known of the layer of the given index, which has at least the given size */
static int layer(int index, int width, int height) {
    int i = 0;
    while (i < MAX_LAYERS - 1 && layers[i].surface != NULL && layers[i].index != index)
        i++;
    cairo_surface_t* old = layers[i].surface;
    if (old != NULL && cairo_image_surface_get_width(old) >= width && cairo_image_surface_get_height(old) >= height)
        return i;
    layers[i].index = index;
    layers[i].surface = cairo_image_surface_create(CAIRO_FORMAT_ARGB32, 2 * WIDTH, 2 * HEIGHT);
    return i;
}

static void paint(int destination, cairo_surface_t* source, int source_x, int source_y, int width, int height, int x, int y) {
    cairo_t* cairo = cairo_create(layers[destination].surface);
    cairo_set_source_surface(cairo, source, x - source_x, y - source_y);
    cairo_rectangle(cairo, x, y, width, height);
    cairo_fill(cairo);
    cairo_destroy(cairo);
}

static void decode(char* base64) {
    static signed char values[256];
    const char* digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (int i = 0; i < 64; i++)
        values[(unsigned char) digits[i]] = i;
    uint32_t bits = 0;
    int count = 0;
    image->data = realloc(image->data, image->length + strlen(base64));
    for (; *base64 != '\0' && *base64 != '='; base64++) {
        bits = bits << 6 | values[(unsigned char) *base64];
        if ((count += 6) >= 8)
            image->data[image->length++] = bits >> (count -= 8);
    }
}

static size_t image_position;

static cairo_status_t read_image(void* closure, unsigned char* data, unsigned int length) {
    (void) closure;
    if (length > image->length - image_position)
        return CAIRO_STATUS_READ_ERROR;
    memcpy(data, image->data + image_position, length);
    image_position += length;
    return CAIRO_STATUS_SUCCESS;
}

static void draw_image(void) {
    image_position = 0;
    cairo_surface_t* surface = cairo_image_surface_create_from_png_stream(read_image, NULL);
    if (cairo_surface_status(surface) != CAIRO_STATUS_SUCCESS)
        fail("an image is no PNG");
    int width = cairo_image_surface_get_width(surface), height = cairo_image_surface_get_height(surface);
    sent += (unsigned long) width * height;
    paint(layer(image->layer, 1, 1), surface, 0, 0, width, height, image->x, image->y);
    cairo_surface_destroy(surface);
}

static void handle(int count, char** elements) {
    int values[16] = { 0 };
    for (int i = 1; i < count && i < 16; i++)
        values[i] = atoi(elements[i]);
    const char* opcode = elements[0];
    if (strcmp(opcode, "sync") == 0)
        syncs++;
    else if (strcmp(opcode, "img") == 0) {
        image = &images[values[1] % MAX_STREAMS];
        image->layer = values[3];
        image->x = values[5];
        image->y = values[6];
        image->length = 0;
    }
    else if (strcmp(opcode, "blob") == 0) {
        image = &images[values[1] % MAX_STREAMS];
        decode(elements[2]);
    }
    else if (strcmp(opcode, "end") == 0) {
        image = &images[values[1] % MAX_STREAMS];
        draw_image();
    }
    else if (strcmp(opcode, "copy") == 0) {
        int source = layer(values[1], 1, 1), destination = layer(values[7], 1, 1);
        paint(destination, layers[source].surface, values[2], values[3], values[4], values[5], values[8], values[9]);
    }
    else if (strcmp(opcode, "rect") == 0) {
        int i = layer(values[1], 1, 1);
        layers[i].x = values[2];
        layers[i].y = values[3];
        layers[i].width = values[4];
        layers[i].height = values[5];
    }
    else if (strcmp(opcode, "cfill") == 0 && values[1] == 14) {
        int i = layer(values[2], 1, 1);
        cairo_t* cairo = cairo_create(layers[i].surface);
        cairo_set_source_rgba(cairo, values[3] / 255.0, values[4] / 255.0, values[5] / 255.0, values[6] / 255.0);
        cairo_rectangle(cairo, layers[i].x, layers[i].y, layers[i].width, layers[i].height);
        cairo_fill(cairo);
        cairo_destroy(cairo);
    }
}

/* Handles what has been received until a frame ends. Returns whether one has. */
static int handle_frame(void) {
    unsigned int before = syncs;
    size_t position = 0;
    pthread_mutex_lock(&lock);
    while (syncs == before) {
        char* elements[16];
        int count = 0;
        size_t current = position;
        char end = ',';
        while (end == ',' && count < 16) {
            char* dot = memchr(received + current, '.', received_length - current);
            if (dot == NULL)
                break;
            size_t length = atoi(received + current);
            elements[count] = dot + 1;
            if ((size_t) (dot + 1 - received) + length >= received_length)
                break;
            end = dot[1 + length];
            count++;
            current = dot + 2 + length - received;
        }
        if (count == 0 || end != ';')
            break;
        for (int i = 0; i < count; i++) {
            char* start = elements[i];
            /* The length precedes the dot */
            char* digits = start - 1;
            while (digits > received + position && digits[-1] >= '0' && digits[-1] <= '9')
                digits--;
            start[atoi(digits)] = '\0';
        }
        handle(count, elements);
        position = current;
    }
    memmove(received, received + position, received_length - position);
    received_length -= position;
    pthread_mutex_unlock(&lock);
    return syncs != before;
}

static int join_pending(guac_client* client) {
    if (guac_display_sync_pending_users != NULL)
        guac_display_sync_pending_users(display);
    else
        guac_display_dup(display, client->pending_socket);
    return 0;
}

/* What has been drawn, and its size */
static uint32_t picture[2 * HEIGHT][2 * WIDTH];
static int width = WIDTH, height = HEIGHT;

/* Whether the user sees what has been drawn */
static int is_seen(void) {
    cairo_surface_t* seen = layers[layer(0, 1, 1)].surface;
    cairo_surface_flush(seen);
    for (int y = 0; y < height; y++) {
        const uint32_t* row = (const uint32_t*) (cairo_image_surface_get_data(seen) + y * cairo_image_surface_get_stride(seen));
        for (int x = 0; x < width; x++)
            if ((row[x] ^ picture[y][x]) & 0xFFFFFF)
                return 0;
    }
    return 1;
}

/* Ends a frame, and waits until the user sees it, or has not for 10 seconds. Another frame may have ended before. */
static void show(int frame, const guac_rect* dirty) {

    guac_display_layer* desktop = guac_display_default_layer(display);
    guac_display_layer_raw_context* context = guac_display_layer_open_raw(desktop);
    for (int y = 0; y < height; y++)
        memcpy(context->buffer + y * context->stride, picture[y], width * 4);
    guac_rect_extend(&context->dirty, dirty);
    guac_display_layer_close_raw(desktop, context);
    guac_display_end_frame(display);
    drawn += (unsigned long) guac_rect_width(dirty) * guac_rect_height(dirty);

    /* Nothing is sent if nothing has changed */
    for (int waited = 0; !is_seen(); waited++) {
        while (waited < 10000 && !handle_frame()) {
            usleep(1000);
            waited++;
        }
        if (waited >= 10000) {
            printf("frame %i is not seen\n", frame);
            fflush(stdout);
            _exit(0);
        }
    }

}

/* Draws lines of text-like noise */
static void write_text(const guac_rect* rect) {
    for (int y = rect->top; y < rect->bottom; y += 16) {
        int end = rect->left + guac_rect_width(rect) / 4 + below(guac_rect_width(rect) * 3 / 4 + 1);
        for (int x = rect->left; x < rect->right; x += 8) {
            uint32_t glyph = x < end && below(6) ? below(0xFFFFFF) & below(0xFFFFFF) : 0;
            for (int j = 0; j < 16 && y + j < rect->bottom; j++)
                for (int i = 0; i < 8 && x + i < rect->right; i++)
                    picture[y + j][x + i] = i && j > 2 && j < 14 && glyph >> (j / 2 * 5 + i) % 24 & 1 ? 0xFF202020 : 0xFFFFFFFF;
        }
    }
}

/* Moves what is in a part of the picture by a distance */
static void move(const guac_rect* rect, int dx, int dy) {
    static uint32_t copy[2 * HEIGHT][2 * WIDTH];
    memcpy(copy, picture, sizeof(picture));
    for (int y = rect->top; y < rect->bottom; y++)
        for (int x = rect->left; x < rect->right; x++)
            if (x + dx >= rect->left && x + dx < rect->right && y + dy >= rect->top && y + dy < rect->bottom)
                picture[y][x] = copy[y + dy][x + dx];
}

static void random_rect(guac_rect* rect) {
    guac_rect bounds;
    guac_rect_init(&bounds, 0, 0, width, height);
    guac_rect_init(rect, below(width), below(height), 1 + below(width), 1 + below(height));
    guac_rect_constrain(rect, &bounds);
}

static void draw_scene(const char* scene, int frame) {

    guac_rect area, new_text;
    guac_rect_init(&area, LEFT, TOP, AREA_WIDTH, AREA_HEIGHT);

    if (strcmp(scene, "random") == 0) {

        static int dx, dy;
        static guac_rect moving;

        /* What moves goes on for a while */
        if (frame % 4 == 0) {
            random_rect(&moving);
            dx = below(3) ? 0 : (int) below(64) - 32;
            dy = below(4) ? (int) below(80) - 40 : 0;
        }

        if (below(20) == 0) {
            width = 1 + below(2 * WIDTH);
            height = 1 + below(2 * HEIGHT);
            guac_rect_init(&area, 0, 0, width, height);
            guac_display_layer_resize(guac_display_default_layer(display), width, height);
            write_text(&area);
            random_rect(&moving);
        }
        else {
            area = moving;
            move(&area, dx, dy);
            for (int i = below(3); i > 0; i--) {
                random_rect(&new_text);
                guac_rect_shrink(&new_text, 100, 100);
                write_text(&new_text);
                guac_rect_extend(&area, &new_text);
            }
        }

        show(frame, &area);
        return;

    }

    static uint32_t old[AREA_HEIGHT / 2][2 * WIDTH], new[AREA_HEIGHT / 2][2 * WIDTH];
    uint32_t* lower = picture[TOP + AREA_HEIGHT / 2];
    memcpy(old, lower, sizeof(old));

    move(&area, 0, 16);
    guac_rect_init(&new_text, LEFT, TOP + AREA_HEIGHT - 16, AREA_WIDTH, 16);
    write_text(&new_text);

    if (strcmp(scene, "torn") == 0) {
        guac_rect half = area;
        half.bottom = TOP + AREA_HEIGHT / 2;
        memcpy(new, lower, sizeof(new));
        memcpy(lower, old, sizeof(old));
        show(frame, &half);
        memcpy(lower, new, sizeof(new));
        area.top = half.bottom;
    }

    show(frame, &area);

}

int main(int argc, char** argv) {

    static const char* mimetypes[] = { "image/png", NULL };

    if (argc < 4)
        return 1;
    seed = atoi(argv[3]);
    alarm(120);

    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_RECURSIVE);
    pthread_mutex_init(&instruction_lock, &attributes);

    client = guac_client_alloc();
    guac_user* user = guac_user_alloc();
    user->client = client;
    user->owner = 1;
    user->active = 1;
    user->info.image_mimetypes = mimetypes;
    user->socket = guac_socket_alloc();
    user->socket->write_handler = receive;
    user->socket->lock_handler = lock_instructions;
    user->socket->unlock_handler = unlock_instructions;
    display = guac_display_alloc(client);
    client->join_pending_handler = join_pending;
    if (display == NULL || guac_client_add_user(client, user, 0, NULL))
        fail("the owner cannot join");

    guac_rect all;
    guac_rect_init(&all, 0, 0, WIDTH, HEIGHT);
    guac_display_layer_resize(guac_display_default_layer(display), WIDTH, HEIGHT);
    guac_display_layer_set_lossless(guac_display_default_layer(display), 1);

    /* The owner has joined once they have been sent the state */
    guac_display_end_frame(display);
    while (!handle_frame())
        usleep(1000);
    usleep(100000);
    while (handle_frame());

    write_text(&all);
    show(-1, &all);

    sent = drawn = 0;
    for (int frame = 0; frame < atoi(argv[2]); frame++)
        draw_scene(argv[1], frame);
    printf("%lu %%\n", sent * 100 / drawn);
    return 0;

}
