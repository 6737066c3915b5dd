/*
 * Licensed under the Apache License, Version 2.0 (the "License"); you may not
 * use this file except in compliance with the License. You may obtain a copy
 * of the License at
 *
 *   http://www.apache.org/licenses/LICENSE-2.0
 *
 * Unless required by applicable law or agreed to in writing, software
 * distributed under the License is distributed on an "AS IS" BASIS, WITHOUT
 * WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied. See the
 * License for the specific language governing permissions and limitations
 * under the License.
 */

#ifndef GUAC_THREAD_LOCAL_H
#define GUAC_THREAD_LOCAL_H

/**
 * Thread-local storage which behaves as that of POSIX threads, but has as many
 * keys as memory allows.
 *
 * Arguments and results are those of the corresponding pthread functions:
 * zero on success, otherwise an error number. Neither errno nor guac_error is
 * set. No function takes a lock, so the child of a fork() may use all of them
 * at once, whatever threads its parent has.
 *
 * @file thread-local.h
 */

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/**
 * A key. The number of a key is never issued again, and zero is never a key.
 */
typedef uintptr_t guac_thread_local_key_t;

/**
 * A function which is called with the value that an exiting thread has for a
 * key.
 */
typedef void (*guac_thread_local_destructor_t)(void* value);

/**
 * Creates a key whose value is NULL in every thread.
 *
 * When a thread returns, calls pthread_exit() or is cancelled, but not when
 * the process calls exit(), each of its values which is not NULL and whose
 * key has a destructor is set to NULL, then given to that destructor. This is
 * repeated up to PTHREAD_DESTRUCTOR_ITERATIONS times while destructors set
 * new values, and starts again if the destructor of a pthread key sets one
 * afterwards. Destructors may use any of the functions declared here.
 *
 * @param key
 *     Where to store the new key. Not written to on failure.
 *
 * @param destructor
 *     The destructor of the key's values, or NULL.
 *
 * @return
 *     Zero, ENOMEM if there is not enough memory, EAGAIN if there are too many
 *     keys (four billion, or one million where pointers have 32 bits), or
 *     EINVAL if key is NULL.
 */
int guac_thread_local_key_create(guac_thread_local_key_t* key,
        guac_thread_local_destructor_t destructor);

/**
 * Deletes a key. No destructor is called, and the values that threads still
 * have for the key can no longer be read.
 *
 * @param key
 *     The key to delete.
 *
 * @return
 *     Zero, or EINVAL if the key does not exist or has been deleted.
 */
int guac_thread_local_key_delete(guac_thread_local_key_t key);

/**
 * Sets the calling thread's value for a key. Each thread has room for the
 * values of 16 keys when it starts. Memory is allocated only when that room is
 * used up, by values or by keys whose value is NULL again.
 *
 * @param key
 *     The key.
 *
 * @param value
 *     The new value.
 *
 * @return
 *     Zero, ENOMEM if there is not enough memory, in which case no value has
 *     changed, or EINVAL if the key does not exist or has been deleted. For a
 *     key with a destructor, and for more than 16 values, the library needs a
 *     pthread key to be called at thread exit: ENOMEM also if it has never
 *     got one since it was loaded.
 */
int guac_thread_local_setspecific(guac_thread_local_key_t key,
        const void* value);

/**
 * Returns the calling thread's value for a key. This function never allocates
 * and is async-signal-safe.
 *
 * @param key
 *     The key.
 *
 * @return
 *     The value which this thread last set, or NULL if it has not set any, or
 *     if the key does not exist or has been deleted.
 */
void* guac_thread_local_getspecific(guac_thread_local_key_t key);

/**
 * Returns the location of the calling thread's value for a key, so that one
 * call can replace several calls of guac_thread_local_getspecific() and
 * guac_thread_local_setspecific(). This function never allocates and is
 * async-signal-safe.
 *
 * @param key
 *     The key.
 *
 * @return
 *     The location of the value. It may be read and written until this thread
 *     sets the value of another key, a destructor is called for a value of
 *     this thread, or the key is deleted. NULL if this thread has not set any
 *     value, or if the key does not exist or has been deleted:
 *     guac_thread_local_setspecific() sets the first value. It may also be
 *     NULL in a destructor, if the value is NULL.
 */
void** guac_thread_local_slot(guac_thread_local_key_t key);

#ifdef __cplusplus
}
#endif

#endif
