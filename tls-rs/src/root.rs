//! Where a thread's storage begins: one variable in thread-local storage, all zero when a thread starts.
//!
//! Stable Rust without `std` has no thread-local variables, and `std`'s are reached through a function call
//! that costs more than the rest of a lookup. So the variable is laid out and addressed in assembly, in the
//! initial-exec model: two instructions on x86_64 and four on aarch64, which also makes an access
//! async-signal-safe, since nothing is ever allocated for it. A shared library with such variables must be
//! loaded when the program starts (as libguac is); glibc also lets a few of them be loaded later.

use core::cell::Cell;
use core::ptr;
use core::sync::atomic::Ordering::{Relaxed, Release};
use core::sync::atomic::{AtomicPtr, compiler_fence};

use crate::exit;
use crate::spare::Spare;
use crate::sys::{self, ENOMEM, Errno};
use crate::table::{Header, InlineTable, Table};

/// What a thread begins with.
///
/// It belongs to one thread. What `get` reads is atomic all the same, in the tables too: a signal handler may call it
/// between any two instructions of that thread. On this side it costs nothing.
#[repr(C, align(64))]
pub(crate) struct Root {
    /// The table that thread exit is walking over, or NULL. It must not be freed or cleared.
    walked: Cell<Option<Table>>,
    /// Whether the hook for thread exit is set in this thread.
    armed: Cell<bool>,
    /// Whether thread exit has been here: it may not come again.
    ended: Cell<bool>,
    /// A cell for the next key that the thread makes.
    pub(crate) spare: Spare,
    /// The first table, so that a thread with few values allocates nothing.
    inline: InlineTable,
}

impl Root {
    /// This thread's root.
    #[inline(always)]
    pub(crate) fn current() -> &'static Root {
        // SAFETY: the variable is a Root and lives as long as the thread that asks.
        unsafe { &*variable::root() }
    }

    /// This thread's table.
    #[inline(always)]
    pub(crate) fn current_table() -> Table {
        // SAFETY: `exchange_table` put it there, and only a table that was replaced is freed.
        unsafe { Table::from_raw(variable::table()) }
    }

    /// Makes `table` this thread's table once it is complete, and before what was the table changes.
    pub(crate) fn exchange_table(table: Table) {
        compiler_fence(Release);
        // SAFETY: the variable lives as long as the thread that asks.
        unsafe { &*variable::table_address() }.store(table.into_raw(), Relaxed);
        compiler_fence(Release);
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
        if table != Table::none() && table != self.inline() && !self.is_walked(table) {
            // SAFETY: it is neither of the others, so it came from `Table::allocate`; nothing refers to it any more.
            unsafe { table.free() };
        }
    }

    /// Whether `exit::thread_exit` is going to be called when this thread ends.
    pub(crate) fn is_armed(&self) -> bool {
        self.armed.get()
    }

    /// Has it called. Fails with `ENOMEM`.
    pub(crate) fn arm(&self) -> Result<(), Errno> {
        if self.is_armed() {
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

    /// Notes that this thread is at its end, so that nothing is kept for later.
    pub(crate) fn end(&self) {
        self.ended.set(true);
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.ended.get()
    }
}

/// The variables, in assembly.
#[cfg(all(not(miri), any(target_arch = "x86_64", target_arch = "aarch64")))]
mod variable {
    use super::{AtomicPtr, Header, Root};
    use crate::table::NO_TABLE;

    // The table is apart from the rest, all of which begins with zeroes, a valid Root.
    core::arch::global_asm!(
        ".pushsection .tdata,\"awT\",%progbits",
        ".globl guac_thread_local_table",
        ".hidden guac_thread_local_table",
        ".type guac_thread_local_table, %object",
        ".size guac_thread_local_table, 8",
        ".balign 8",
        "guac_thread_local_table:",
        ".8byte {no_table}",
        ".popsection",
        ".pushsection .tbss,\"awT\",%nobits",
        ".globl guac_thread_local_root",
        ".hidden guac_thread_local_root",
        ".type guac_thread_local_root, %object",
        ".size guac_thread_local_root, {size}",
        ".balign {align}",
        "guac_thread_local_root:",
        ".zero {size}",
        ".popsection",
        no_table = sym NO_TABLE,
        size = const size_of::<Root>(),
        align = const align_of::<Root>(),
    );

    // SAFETY (of what follows): the sequences of the psABIs for the initial-exec model. What they read, but for the
    // table itself, is fixed before the thread's first instruction.

    /// What `table_address` leads to. Read at once, this takes an instruction less.
    #[inline(always)]
    pub(super) fn table() -> *mut Header {
        let table;
        // SAFETY: see above.
        unsafe {
            #[cfg(target_arch = "x86_64")]
            core::arch::asm!(
                "mov {table}, qword ptr [rip + guac_thread_local_table@GOTTPOFF]",
                "mov {table}, qword ptr fs:[{table}]",
                table = out(reg) table,
                options(pure, readonly, nostack, preserves_flags),
            );
            #[cfg(target_arch = "aarch64")]
            core::arch::asm!(
                "adrp {table}, :gottprel:guac_thread_local_table",
                "ldr {table}, [{table}, :gottprel_lo12:guac_thread_local_table]",
                "mrs {thread}, tpidr_el0",
                "ldr {table}, [{thread}, {table}]",
                table = out(reg) table,
                thread = out(reg) _,
                options(pure, readonly, nostack, preserves_flags),
            );
        }
        table
    }

    macro_rules! address {
        ($name:literal) => {{
            let address;
            // SAFETY: see above.
            unsafe {
                #[cfg(target_arch = "x86_64")]
                core::arch::asm!(
                    "mov {address}, qword ptr fs:[0]",
                    concat!("add {address}, qword ptr [rip + ", $name, "@GOTTPOFF]"),
                    address = out(reg) address,
                    options(pure, nomem, nostack),
                );
                #[cfg(target_arch = "aarch64")]
                core::arch::asm!(
                    concat!("adrp {address}, :gottprel:", $name),
                    concat!("ldr {address}, [{address}, :gottprel_lo12:", $name, "]"),
                    "mrs {thread}, tpidr_el0",
                    "add {address}, {address}, {thread}",
                    address = out(reg) address,
                    thread = out(reg) _,
                    options(pure, nomem, nostack, preserves_flags),
                );
            }
            address
        }};
    }

    #[inline(always)]
    pub(super) fn root() -> *const Root {
        address!("guac_thread_local_root")
    }

    #[inline(always)]
    pub(super) fn table_address() -> *const AtomicPtr<Header> {
        address!("guac_thread_local_table")
    }
}

/// The variables, from `std`: slower, for other architectures and for Miri.
#[cfg(any(miri, not(any(target_arch = "x86_64", target_arch = "aarch64"))))]
mod variable {
    use super::{AtomicPtr, Header, Relaxed, Root};
    use crate::table::Table;

    std::thread_local! {
        // SAFETY: zeroes are a valid Root.
        static ROOT: Root = const { unsafe { core::mem::zeroed() } };
        static TABLE: AtomicPtr<Header> = AtomicPtr::new(Table::none().into_raw());
    }

    pub(super) fn table() -> *mut Header {
        TABLE.with(|table| table.load(Relaxed))
    }

    pub(super) fn root() -> *const Root {
        ROOT.with(core::ptr::from_ref)
    }

    pub(super) fn table_address() -> *const AtomicPtr<Header> {
        TABLE.with(core::ptr::from_ref)
    }
}
