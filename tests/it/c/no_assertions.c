/* The first object that json.c writes, compiled without assertions. */

#include "config.h"
#undef NDEBUG
#define NDEBUG
#include "json.c"

#include <stdio.h>

int guac_protocol_send_blob(guac_socket* socket, const guac_stream* stream, const void* data, int count) {
    (void) socket;
    (void) stream;
    return fwrite(data, 1, count, stdout) != (size_t) count;
}

int main(void) {

    guac_user user = { 0 };
    guac_stream stream = { 0 };
    guac_common_json_state state;

    guac_common_json_begin_object(&user, &stream, &state);
    guac_common_json_write_property(&user, &stream, &state, "a\nb", "c");
    guac_common_json_end_object(&user, &stream, &state);
    guac_common_json_flush(&user, &stream, &state);
    return 0;

}
