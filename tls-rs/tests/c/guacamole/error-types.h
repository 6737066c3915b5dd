/* In place of libguac's header of this name */

#ifndef GUAC_ERROR_TYPES_H
#define GUAC_ERROR_TYPES_H

typedef enum guac_status {
    GUAC_STATUS_SUCCESS = 0,
    GUAC_STATUS_NO_MEMORY = 1
} guac_status;

#endif
