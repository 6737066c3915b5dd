/*
 * Prints what the libssh2 that this is compiled with can use, one fact a line: its version, each type of host key, and whether
 * it signs with SHA-2 when a user logs in with an RSA key.
 */

#include <libssh2.h>
#include <stdio.h>

/**
 * Prints what libssh2 can use.
 *
 * @return
 *     Zero on success, one if libssh2 does not say it.
 */
int main(void) {

    if (libssh2_init(0))
        return 1;

    LIBSSH2_SESSION* session = libssh2_session_init();
    if (session == NULL)
        return 1;

    const char** types;
    int count = libssh2_session_supported_algs(session, LIBSSH2_METHOD_HOSTKEY, &types);
    if (count < 0)
        return 1;

    printf("version %s\n", libssh2_version(0));
    for (int i = 0; i < count; i++)
        printf("host-key %s\n", types[i]);

/* What is signed with has been a choice since libssh2 can sign with SHA-2 */
#ifdef LIBSSH2_METHOD_SIGN_ALGO
    printf("user-rsa sha2\n");
#endif

    libssh2_free(session, types);
    libssh2_session_free(session);
    libssh2_exit();
    return 0;

}
