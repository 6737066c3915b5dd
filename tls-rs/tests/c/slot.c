/* guac_thread_local_slot: where a value is */

#include "check.h"
#include "libguac.h"

#define KEYS 200

/* So many that some are not in their home slots, and all of them have other values */
static guac_thread_local_key_t keys[KEYS];

static void a_value_is_read_and_written_where_it_is(void) {

    for (int i = 0; i < KEYS; i++) {
        CHECK(guac_thread_local_key_create(&keys[i], NULL) == 0);
        CHECK(guac_thread_local_slot(keys[i]) == NULL);
        CHECK(guac_thread_local_setspecific(keys[i], VALUE(i + 1)) == 0);
        CHECK(*guac_thread_local_slot(keys[i]) == VALUE(i + 1));
    }

    for (int i = 0; i < KEYS; i++) {
        void** slot = guac_thread_local_slot(keys[i]);
        CHECK(slot != NULL && *slot == VALUE(i + 1));
        *slot = VALUE(i + 1000);
        CHECK(guac_thread_local_getspecific(keys[i]) == VALUE(i + 1000));
        CHECK(guac_thread_local_setspecific(keys[i], NULL) == 0);
        CHECK(guac_thread_local_slot(keys[i]) == slot && *slot == NULL);
    }

    for (int i = 0; i < KEYS; i++) {
        CHECK(guac_thread_local_key_delete(keys[i]) == 0);
        CHECK(guac_thread_local_slot(keys[i]) == NULL);
    }
    CHECK(guac_thread_local_slot(0) == NULL);

}

int main(void) {
    a_value_is_read_and_written_where_it_is();
    return 0;
}
