//! The storage of libguac's `guac_error` and `guac_error_message`: plain thread-local variables.
//!
//! They need neither key nor allocation. So they are valid from a thread's first instruction to its last, and guacd can
//! report that memory has run out. `thread-local-error.h` declares them for C. They are hidden, and so no part of
//! libguac's ABI.

// A `guac_status`, which is an enum of the size of an int, and a `const char*`. Zero is GUAC_STATUS_SUCCESS.
core::arch::global_asm!(
    ".pushsection .tbss,\"awT\",%nobits",
    ".globl guac_thread_local_error_status",
    ".hidden guac_thread_local_error_status",
    ".type guac_thread_local_error_status, %object",
    ".size guac_thread_local_error_status, {status}",
    ".balign {pointer}",
    "guac_thread_local_error_status:",
    ".zero {status}",
    ".globl guac_thread_local_error_message",
    ".hidden guac_thread_local_error_message",
    ".type guac_thread_local_error_message, %object",
    ".size guac_thread_local_error_message, {pointer}",
    ".balign {pointer}",
    "guac_thread_local_error_message:",
    ".zero {pointer}",
    ".popsection",
    status = const size_of::<core::ffi::c_int>(),
    pointer = const size_of::<*const core::ffi::c_char>(),
);
