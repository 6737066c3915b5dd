//! Where a thread's storage begins: one variable in thread-local storage, all zero when a thread starts.
//!
//! Stable Rust without `std` has no thread-local variables, and `std`'s are reached through a function call
//! that costs more than the rest of a lookup. So the variable is laid out and addressed in assembly, in the
//! initial-exec model: two instructions on x86_64 and four on aarch64, which also makes an access
//! async-signal-safe, since nothing is ever allocated for it. A shared library with such variables must be
//! loaded when the program starts (as libguac is); glibc also lets a few of them be loaded later.

use core::cell::Cell;
use core::ptr;
use core::sync::atomic::AtomicPtr;
use core::sync::atomic::Ordering::Relaxed;

use crate::exit;
use crate::sys::{self, ENOMEM, Errno};
use crate::table::{Header, InlineTable, Table};

/// What a thread begins with.
///
/// It belongs to one thread. What `get` reads is atomic all the same, here and in the tables: a signal handler
/// may call it between any two instructions of that thread. On this side it costs nothing.
#[repr(C, align(64))]
pub(crate) struct Root {
    /// The thread's table, or NULL as long as it has no values.
    table: AtomicPtr<Header>,
    /// The table that thread exit is walking over, or NULL. It must not be freed or cleared.
    walked: Cell<Option<Table>>,
    /// Whether the hook for thread exit is set in this thread.
    armed: Cell<bool>,
    /// The first table, so that a thread with few values allocates nothing.
    inline: InlineTable,
}

impl Root {
    /// This thread's root.
    #[inline(always)]
    pub(crate) fn current() -> &'static Root {
        // SAFETY: the variable is a Root and lives as long as the thread that asks.
        unsafe { &*variable::address() }
    }

    /// The thread's table, if it has one.
    #[inline]
    pub(crate) fn table(&self) -> Option<Table> {
        // SAFETY: `set_table` put it there, and only a table that was replaced is freed.
        unsafe { Table::from_raw(self.table.load(Relaxed)) }
    }

    /// Makes `table` the thread's table.
    pub(crate) fn set_table(&self, table: Option<Table>) {
        self.table.store(Table::into_raw(table), Relaxed);
    }

    /// The inline table.
    pub(crate) fn inline(&self) -> Table {
        self.inline.table()
    }

    /// Whether thread exit is walking over `table`.
    pub(crate) fn is_walked(&self, table: Table) -> bool {
        self.walked.get() == Some(table)
    }

    /// Notes which table thread exit is walking over.
    pub(crate) fn set_walked(&self, table: Option<Table>) {
        self.walked.set(table);
    }

    /// Frees `table`, which is the thread's no more, unless it is inline or still needed by thread exit.
    pub(crate) fn release(&self, table: Table) {
        if table != self.inline() && !self.is_walked(table) {
            // SAFETY: it is not inline, so it came from `Table::allocate`; nothing refers to it any more.
            unsafe { table.free() };
        }
    }

    /// Has `exit::thread_exit` called when this thread ends. Fails with `ENOMEM`.
    pub(crate) fn arm(&self) -> Result<(), Errno> {
        if self.armed.get() {
            return Ok(());
        }
        let hook = exit::hook().ok_or(ENOMEM)?;
        // SAFETY: the hook is a native key, and stays one.
        if unsafe { sys::pthread_setspecific(hook, ptr::from_ref(self).cast()) } != 0 {
            return Err(ENOMEM);
        }
        self.armed.set(true);
        Ok(())
    }

    /// Notes that libc has taken the hook out again, as it does before it calls a destructor.
    pub(crate) fn disarm(&self) {
        self.armed.set(false);
    }
}

/// The variable, in assembly.
#[cfg(all(not(miri), any(target_arch = "x86_64", target_arch = "aarch64")))]
mod variable {
    use super::Root;

    // Zeroes are a valid Root.
    core::arch::global_asm!(
        ".pushsection .tbss,\"awT\",%nobits",
        ".globl guac_thread_local_root",
        ".hidden guac_thread_local_root",
        ".type guac_thread_local_root, %object",
        ".size guac_thread_local_root, {size}",
        ".balign {align}",
        "guac_thread_local_root:",
        ".zero {size}",
        ".popsection",
        size = const size_of::<Root>(),
        align = const align_of::<Root>(),
    );

    #[inline(always)]
    pub(super) fn address() -> *const Root {
        let address;
        // SAFETY: the sequences of the psABIs for the initial-exec model. What they read is fixed before the
        // thread's first instruction.
        unsafe {
            #[cfg(target_arch = "x86_64")]
            core::arch::asm!(
                "mov {address}, qword ptr fs:[0]",
                "add {address}, qword ptr [rip + guac_thread_local_root@GOTTPOFF]",
                address = out(reg) address,
                options(pure, nomem, nostack),
            );
            #[cfg(target_arch = "aarch64")]
            core::arch::asm!(
                "adrp {address}, :gottprel:guac_thread_local_root",
                "ldr {address}, [{address}, :gottprel_lo12:guac_thread_local_root]",
                "mrs {thread}, tpidr_el0",
                "add {address}, {address}, {thread}",
                address = out(reg) address,
                thread = out(reg) _,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        address
    }
}

/// The variable, from `std`: slower, for other architectures and for Miri.
#[cfg(not(all(not(miri), any(target_arch = "x86_64", target_arch = "aarch64"))))]
mod variable {
    use super::Root;

    std::thread_local! {
        // SAFETY: zeroes are a valid Root.
        static ROOT: Root = const { unsafe { core::mem::zeroed() } };
    }

    pub(super) fn address() -> *const Root {
        ROOT.with(core::ptr::from_ref)
    }
}
