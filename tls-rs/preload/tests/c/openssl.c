/* OpenSSL uses six pthread keys, and more for the state of threads */

#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/rand.h>
#include <openssl/ssl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#define CHECK(condition) \
    do { if (!(condition)) { fprintf(stderr, "not true: %s\n", #condition); abort(); } } while (0)

static void* run(void* data) {
    for (int i = 0; i < 20; i++) {
        unsigned char random[32], digest[EVP_MAX_MD_SIZE];
        unsigned int length;
        CHECK(RAND_bytes(random, sizeof(random)) == 1);
        CHECK(EVP_Digest(random, sizeof(random), digest, &length, EVP_sha256(), NULL) == 1);
        CHECK(length == 32);
        /* Each thread has its own queue of errors, and its own store of random numbers */
        CHECK(ERR_peek_error() == 0);
        ERR_raise(ERR_LIB_USER, 7);
        CHECK(ERR_GET_REASON(ERR_peek_error()) == 7);
        ERR_clear_error();
        SSL_CTX* context = SSL_CTX_new(TLS_method());
        CHECK(context != NULL);
        SSL_CTX_free(context);
    }
    return data;
}

int main(void) {

    /* OpenSSL is loaded after these, as in a session of guacd */
    for (int i = 0; i < 2000; i++) {
        pthread_key_t key;
        CHECK(pthread_key_create(&key, NULL) == 0);
    }

    pthread_t threads[8];
    for (int i = 0; i < 8; i++)
        CHECK(pthread_create(&threads[i], NULL, run, NULL) == 0);
    for (int i = 0; i < 8; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    return 0;

}
