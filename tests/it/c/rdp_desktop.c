/* What an RDP session does with its desktop and its clipboard. `rdp_desktop resize` prints what becomes of what has been drawn when
 * the server resizes the desktop, `race` whether that is possible while another thread draws, `sizes` how often the server is asked
 * for a size, and `clipboard` how much text is passed on. */

#include "config.h"

#include "channels/cliprdr.h"
#include "channels/disp.h"
#include "common/clipboard.h"
#include "gdi.h"
#include "rdp.h"
#include "settings.h"

#include <freerdp/channels/cliprdr.h>
#include <freerdp/channels/disp.h>
#include <freerdp/client/cliprdr.h>
#include <freerdp/client/disp.h>
#include <freerdp/event.h>
#include <freerdp/freerdp.h>
#include <freerdp/gdi/gdi.h>
#include <freerdp/settings.h>
#include <guacamole/client.h>
#include <guacamole/socket.h>
#include <guacamole/timestamp.h>

#include <malloc.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "sleeps.h"

#if __has_include(<guacamole/display.h>)
#include <guacamole/display.h>
#define HAS_DISPLAY
#endif

#define RED 0xFFFF0000

/* Stock does not have this. */
BOOL guac_rdp_gdi_init(freerdp* instance) __attribute__((weak));

static guac_client* client;
static guac_rdp_client rdp_client;
static guac_rdp_settings settings;
static freerdp* instance;
static rdpContext* context;

/* The time, in milliseconds, in place of libguac's */
static guac_timestamp now = 1000000;

guac_timestamp guac_timestamp_current(void) {
    return now;
}

/* FreeRDP has the channels, in place of the plugin's function which loads them */
int guac_freerdp_channels_load_plugin(rdpContext* context, const char* name, void* data) {
    return 0;
}

static void start(void) {
    client = guac_client_alloc();
    client->data = &rdp_client;
    rdp_client.settings = &settings;
    pthread_mutex_init(&rdp_client.message_lock, NULL);
    instance = freerdp_new();
    instance->ContextSize = sizeof(rdp_freerdp_context);
    freerdp_context_new(instance);
    context = instance->context;
    ((rdp_freerdp_context*) context)->client = client;
}

static void set_size(int width, int height) {
    freerdp_settings_set_uint32(context->settings, FreeRDP_DesktopWidth, width);
    freerdp_settings_set_uint32(context->settings, FreeRDP_DesktopHeight, height);
}

#ifdef HAS_DISPLAY
/* What users receive */
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

/* Starts the drawing, on memory that is full of something */
static void start_drawing(void) {
    mallopt(M_PERTURB, 0x55);
    client->socket = guac_socket_alloc();
    client->socket->write_handler = receive;
    rdp_client.display = guac_display_alloc(client);
    set_size(128, 128);
    guac_display_layer_resize(guac_display_default_layer(rdp_client.display), 128, 128);
    if (guac_rdp_gdi_init != NULL)
        guac_rdp_gdi_init(instance);
    else
        gdi_init(instance, PIXEL_FORMAT_BGRX32);
}

static uint32_t pixel(int x, int y) {
    return *(uint32_t*) (context->gdi->primary_buffer + y * context->gdi->stride + x * 4);
}

static void resize(void) {
    start_drawing();
    rdpGdi* gdi = context->gdi;
    printf("begins with %s, ", pixel(5, 5) == 0 ? "zeroes" : "what was there");
    guac_rdp_gdi_begin_paint(context);
    for (int i = 0; i < 128 * 128; i++)
        ((uint32_t*) gdi->primary_buffer)[i] = RED;
    HGDI_RGN invalid = gdi->primary->hdc->hwnd->invalid;
    invalid->x = invalid->y = 0;
    invalid->w = invalid->h = 128;
    invalid->null = FALSE;
    guac_rdp_gdi_end_paint(context);
    guac_display_end_frame(rdp_client.display);
    while (strstr(received, "4.sync,") == NULL)
        usleep(1000);

    set_size(192, 256);
    guac_rdp_gdi_desktop_resize(context);
    gdi = context->gdi;
    printf("%s what was drawn, ", pixel(5, 5) == RED && pixel(127, 127) == RED ? "keeps" : "loses");
    printf("goes on with %s, ", pixel(150, 5) == 0 && pixel(5, 200) == 0 && pixel(191, 255) == 0 ? "zeroes" : "what was there");

    /* The frame ends with a "sync" */
    length = 0;
    received[0] = '\0';
    guac_display_end_frame(rdp_client.display);
    for (int i = 0; i < 200 && strstr(received, "4.sync,") == NULL; i++)
        usleep(50000);
    int is_black = strstr(received, "5.cfill,2.14,1.0,1.0,1.0,1.0,3.255;") != NULL;
    printf("%s what is new as black\n", is_black ? "shows" : "does not show");
}

/* The thread that resizes the desktop */
static volatile pid_t tid;

static void* resize_thread(void* data) {
    tid = syscall(SYS_gettid);
    guac_rdp_gdi_desktop_resize(context);
    return data;
}

static void race(void) {
    pthread_t thread;
    start_drawing();
    guac_rdp_gdi_begin_paint(context);
    set_size(256, 256);
    pthread_create(&thread, NULL, resize_thread, NULL);
    while (tid == 0 || !sleeps(tid))
        usleep(1000);
    guac_rdp_gdi_end_paint(context);
    pthread_join(thread, NULL);
    printf("resizes to %ix%i\n", context->gdi->width, context->gdi->height);
}

#endif

/* Has FreeRDP say that the server has opened a channel */
static void connect_channel(const char* name, void* interface) {
    ChannelConnectedEventArgs args;
    EventArgsInit(&args, "test");
    args.name = name;
    args.pInterface = interface;
    PubSub_OnChannelConnected(context->pubSub, context, &args);
}

/* The sizes that the server was asked for */
static int asked, asked_width, asked_height;

static UINT ask(DispClientContext* disp, UINT32 count, DISPLAY_CONTROL_MONITOR_LAYOUT* monitors) {
    asked++;
    asked_width = monitors[0].Width;
    asked_height = monitors[0].Height;
    return CHANNEL_RC_OK;
}

/* Lets a minute pass */
static void wait_a_minute(void) {
    for (int i = 0; i < 600; i++) {
        now += 100;
        guac_rdp_disp_update_size(rdp_client.disp, &settings, instance);
    }
    printf("asks %i times for %ix%i\n", asked, asked_width, asked_height);
    asked = 0;
}

static void sizes(void) {
    settings.resize_method = GUAC_RESIZE_DISPLAY_UPDATE;
    rdp_client.disp = guac_rdp_disp_alloc(client);
    set_size(1024, 768);
    guac_rdp_disp_load_plugin(context);
    now += 1000;
    guac_rdp_disp_set_size(rdp_client.disp, &settings, instance, 700, 500);

    DispClientContext channel = { .SendMonitorLayout = ask };
    connect_channel(DISP_DVC_CHANNEL_NAME, &channel);
    wait_a_minute();
    guac_rdp_disp_set_size(rdp_client.disp, &settings, instance, 640, 480);
    wait_a_minute();
    /* A server that obeys is asked once */
    guac_rdp_disp_set_size(rdp_client.disp, &settings, instance, 800, 600);
    now += 1000;
    guac_rdp_disp_update_size(rdp_client.disp, &settings, instance);
    set_size(800, 600);
    wait_a_minute();
}

/* What the server receives of the clipboard */
static UINT respond(CliprdrClientContext* cliprdr, const CLIPRDR_FORMAT_DATA_RESPONSE* response) {
#ifdef HAVE_CLIPRDR_HEADER
    int size = response->common.dataLen;
#else
    int size = response->dataLen;
#endif
    const uint16_t* units = (const uint16_t*) response->requestedFormatData;
    if (size < 16)
        printf("to the server: %04X %04X\n", units[0], units[1]);
    else
        printf("to the server: %i bytes\n", size);
    return CHANNEL_RC_OK;
}

static void clipboard(void) {
    settings.disable_copy = 0;
    rdp_client.clipboard = guac_rdp_clipboard_alloc(client);
    guac_rdp_clipboard_load_plugin(rdp_client.clipboard, context);
    CliprdrClientContext cliprdr = { .ClientFormatDataResponse = respond };
    connect_channel(CLIPRDR_SVC_CHANNEL_NAME, &cliprdr);

    guac_common_clipboard* text = rdp_client.clipboard->clipboard;

    /* A character beyond U+FFFF, which clients send as two surrogates */
    CLIPRDR_FORMAT_DATA_REQUEST request = { .requestedFormatId = CF_UNICODETEXT };
    guac_common_clipboard_reset(text, "text/plain");
    guac_common_clipboard_append(text, "\xED\xA0\xBD\xED\xB8\x80", 6);
    cliprdr.ServerFormatDataRequest(&cliprdr, &request);

    static char lines[GUAC_COMMON_CLIPBOARD_MAX_LENGTH];
    memset(lines, '\n', sizeof(lines));
    for (int crlf = 0; crlf < 2; crlf++) {
        settings.clipboard_crlf = crlf;
        guac_common_clipboard_reset(text, "text/plain");
        guac_common_clipboard_append(text, lines, sizeof(lines));
        cliprdr.ServerFormatDataRequest(&cliprdr, &request);
    }

    /* More than there is room for: characters of one byte each, and of three */
    enum { COUNT = 300000 };
    static uint16_t units[COUNT + 1];
    for (int unit = 'x'; unit != 0; unit = unit == 'x' ? 0x20AC : 0) {
        for (int i = 0; i < COUNT; i++)
            units[i] = unit;
        CLIPRDR_FORMAT_DATA_RESPONSE response = {
            .requestedFormatData = (BYTE*) units,
#ifdef HAVE_CLIPRDR_HEADER
            .common = { .dataLen = sizeof(units) }
#else
            .dataLen = sizeof(units)
#endif
        };
        guac_common_clipboard_reset(text, "text/plain");
        rdp_client.clipboard->requested_format = CF_UNICODETEXT;
        cliprdr.ServerFormatDataResponse(&cliprdr, &response);
        printf("from the server: %i bytes\n", text->length);
    }
}

int main(int argc, char** argv) {
    const char* what = argc > 1 ? argv[1] : "";
    start();
#ifdef HAS_DISPLAY
    if (strcmp(what, "resize") == 0)
        resize();
    else if (strcmp(what, "race") == 0)
        race();
#endif
    if (strcmp(what, "sizes") == 0)
        sizes();
    else if (strcmp(what, "clipboard") == 0)
        clipboard();
    fflush(stdout);
    _exit(0);
}
