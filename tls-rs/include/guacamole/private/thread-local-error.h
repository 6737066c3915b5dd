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

#ifndef GUAC_PRIVATE_THREAD_LOCAL_ERROR_H
#define GUAC_PRIVATE_THREAD_LOCAL_ERROR_H

/**
 * The storage of guac_error and guac_error_message, for libguac alone: the
 * variables are hidden, so libguac.so does not export them. They are valid
 * from the first instruction of a thread to its last. They are zero at first
 * (GUAC_STATUS_SUCCESS and NULL), and are never allocated.
 *
 * @file thread-local-error.h
 */

#include "guacamole/error-types.h"

/* tls-rs defines a variable of the size of an int */
typedef char guac_thread_local_error_status_is_an_int
        [sizeof(guac_status) == sizeof(int) ? 1 : -1];

/**
 * The calling thread's guac_error.
 */
extern __thread guac_status guac_thread_local_error_status
        __attribute__((visibility("hidden"), tls_model("initial-exec")));

/**
 * The calling thread's guac_error_message.
 */
extern __thread const char* guac_thread_local_error_message
        __attribute__((visibility("hidden"), tls_model("initial-exec")));

#endif
