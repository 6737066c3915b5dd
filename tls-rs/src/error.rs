//! Where libguac's `guac_error` and `guac_error_message` are kept: plain thread-local variables.
//!
//! They need no key and no allocation, so they are there from a thread's first instruction to its last, and
//! guacd may report the error that it has run out of memory. The C side is `thread-local-error.h`. Hidden, so
//! that they are libguac's own and not a part of its ABI.

// One `guac_status`, an enum and so as large as an int, and one `const char*`. Zero is GUAC_STATUS_SUCCESS.
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
