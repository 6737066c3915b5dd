/* How many locks can a thread hold at once, and release again? */

#include <guacamole/rwlock.h>

#include <stdio.h>

#define LOCKS 100

int main(void) {

    static guac_rwlock locks[LOCKS];
    int acquired = 0, again = 0, released = 0;

    for (int i = 0; i < LOCKS; i++)
        guac_rwlock_init(&locks[i]);

    for (int i = 0; i < LOCKS; i++)
        acquired += guac_rwlock_acquire_write_lock(&locks[i]) == 0;

    for (int i = 0; i < acquired; i++)
        again += guac_rwlock_acquire_read_lock(&locks[i]) == 0;

    for (int i = 0; i < 2 * acquired; i++)
        released += guac_rwlock_release_lock(&locks[i % acquired]) == 0;

    printf("%d, again %d, released %d\n", acquired, again, released);
    return 0;

}
