//! Where a thread's storage lies: two variables in static thread-local storage, the root and the pointer to its table.
//!
//! Stable Rust without `std` has no thread-local variables. Access to those of `std` takes a function call, which costs
//! more than the rest of a lookup. So these are defined and addressed in assembly, in the initial-exec model: two
//! instructions on x86_64 and four on aarch64. Nothing is ever allocated for them, so an access is async-signal-safe.
//! A shared library with such variables must be loaded when the program starts, as libguac is. (glibc keeps a little
//! room for those that are loaded later.)

use core::cell::Cell;
use core::sync::atomic::Ordering::{Relaxed, Release, SeqCst};
use core::sync::atomic::{AtomicPtr, compiler_fence};

use crate::registry::{FreeCell, KeyCell};
use crate::table::{Header, InlineTable, Table};

/// What belongs to one thread. All zero when the thread starts.
///
/// Only its thread uses it. What `get` reads is atomic nevertheless, here and in the tables: a signal handler may call
/// `get` between any two instructions of that thread. On these architectures, relaxed atomics cost nothing.
#[repr(C, align(64))]
pub(crate) struct Root {
    /// How far thread exit is.
    pub(crate) progress: Progress,
    /// Whether the native key for thread exit has a value in this thread.
    armed: Cell<bool>,
    /// Whether thread exit has run. It may not run again.
    ended: Cell<bool>,
    /// The table that the thread is changing, if it is. A signal handler that interrupts it must not. The thread itself has
    /// none while that table is being replaced.
    changing: Cell<Option<Table>>,
    /// The cell of a key that the thread has deleted, for the next key that it creates.
    spare: Cell<Option<&'static KeyCell>>,
    /// The first table, so that a thread with few values allocates nothing.
    inline: InlineTable,
}

/// How far thread exit is: `exit.rs` explains it. All zero when it does not run.
#[repr(C)]
pub(crate) struct Progress {
    /// Whether this round has called a destructor.
    pub(crate) called: Cell<bool>,
    /// How many rounds have begun.
    pub(crate) rounds: Cell<u8>,
    /// The index of the key whose turn it was last in this round, or 0.
    pub(crate) last: Cell<u32>,
    /// The round has keys with lower indices than this.
    pub(crate) end: Cell<u32>,
    /// How many keys are in the table's queue.
    pub(crate) queued: Cell<u32>,
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

    /// Makes `table`, which must be complete, this thread's table. The old table may be changed afterwards.
    pub(crate) fn exchange_table(table: Table) {
        compiler_fence(Release);
        // SAFETY: the variable lives as long as the thread that asks.
        unsafe { &*variable::table_address() }.store(table.into_raw(), Relaxed);
        compiler_fence(Release);
    }

    /// The table that has the thread's values, also while it is being replaced.
    pub(crate) fn table(&self) -> Table {
        let table = Self::current_table();
        if table.is_none() { self.changing.get().unwrap_or(table) } else { table }
    }

    /// Makes `new` this thread's table, in place of `old`, whose values `copy` puts into it. Between two steps of that, a
    /// signal handler finds values in `old`, and may set some there. Then they are copied again.
    pub(crate) fn replace_table(&self, old: Table, new: Table, copy: impl FnOnce()) {
        self.set_changing(Some(old));
        Self::exchange_table(Table::none());
        copy();
        // SAFETY: the variable lives as long as the thread that asks.
        let current = unsafe { &*variable::table_address() };
        let none = Table::none().into_raw();
        while current.compare_exchange(none, new.into_raw(), Release, Relaxed).is_err() {
            Self::exchange_table(Table::none());
            new.copy_values(old);
        }
        self.set_changing(Some(new));
    }

    /// Records that a signal handler has set a value, which must be copied if the thread's table is being replaced.
    pub(crate) fn set_outdated(&self) {
        if Self::current_table().is_none() {
            Self::exchange_table(Table::outdated());
        }
    }

    /// Whether the thread is changing its table.
    pub(crate) fn is_changing(&self) -> bool {
        self.changing.get().is_some()
    }

    /// Records which table the thread is changing.
    pub(crate) fn set_changing(&self, table: Option<Table>) {
        compiler_fence(SeqCst); // a signal handler sees the steps of the thread that it interrupts in order
        self.changing.set(table);
        compiler_fence(SeqCst);
    }

    /// The inline table.
    pub(crate) fn inline(&self) -> Table {
        self.inline.table()
    }

    /// Frees `table`, which the thread no longer uses, unless it is inline.
    pub(crate) fn release(&self, table: Table) {
        if table != Table::none() && table != self.inline() {
            // SAFETY: all other tables come from `Table::allocate`, and nothing refers to this one any more.
            unsafe { table.free() };
        }
    }

    /// Whether libc will call `exit::thread_exit` when this thread ends.
    #[inline]
    pub(crate) fn is_armed(&self) -> bool {
        self.armed.get()
    }

    /// Records whether it will.
    #[inline]
    pub(crate) fn set_armed(&self, armed: bool) {
        self.armed.set(armed);
    }

    /// Whether thread exit has run in this thread. It may not run again, so the thread keeps nothing for later.
    #[inline]
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.get()
    }

    /// Records that thread exit has run.
    pub(crate) fn set_ended(&self) {
        self.ended.set(true);
    }

    /// Takes the thread's spare cell, if it has one.
    #[inline]
    pub(crate) fn take_spare(&self) -> Option<FreeCell> {
        self.spare.take().map(FreeCell)
    }

    /// Whether the thread has a spare cell.
    #[inline]
    pub(crate) fn has_spare(&self) -> bool {
        self.spare.get().is_some()
    }

    /// Keeps a cell as the thread's spare, of which there must be none.
    #[inline]
    pub(crate) fn keep_spare(&self, FreeCell(cell): FreeCell) {
        self.spare.set(Some(cell));
    }
}

/// The variables, defined in assembly.
#[cfg(all(not(miri), any(target_arch = "x86_64", target_arch = "aarch64")))]
mod variable {
    use super::{AtomicPtr, Header, Root};
    use crate::table::NO_TABLE;

    // The pointer to the table is a separate variable, as its first value is not zero. Zeroes are a valid Root.
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

    // SAFETY of the functions below: these are the psABIs' sequences for the initial-exec model. All that they read, but
    // for the pointer to the table, is fixed before the thread's first instruction.

    /// The pointer at `table_address`. A direct read takes one instruction less.
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

/// The variables, defined with `std`: slower, for Miri and for all other architectures.
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
