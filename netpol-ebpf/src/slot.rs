//! Access to map values that other CPUs and the agent also write.

use core::marker::PhantomData;

/// A value inside a map. Reads and writes are volatile and word by word: a concurrent write of another CPU is visible
/// or not, field by field. Values read here are only used for timing, events and versions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot<'a, T> {
    value: *mut T,
    lifetime: PhantomData<&'a T>,
}

impl<'a, T: Copy> Slot<'a, T> {
    /// Creates a slot for a value.
    ///
    /// # Safety
    /// `value` must be valid for reads and writes during the slot's lifetime, and there must be no reference to it.
    #[inline(always)]
    pub(crate) const unsafe fn new(value: *mut T) -> Self {
        Self { value, lifetime: PhantomData }
    }

    /// Reads one field.
    #[inline(always)]
    pub(crate) fn read<F: Copy>(&self, field: impl FnOnce(*mut T) -> *mut F) -> F {
        // SAFETY: `new` requires a valid value; callers name a field of it with `&raw mut`.
        unsafe { field(self.value).read_volatile() }
    }

    /// Writes one field.
    #[inline(always)]
    pub(crate) fn write<F: Copy>(&self, field: impl FnOnce(*mut T) -> *mut F, new: F) {
        // SAFETY: as above.
        unsafe { field(self.value).write_volatile(new) }
    }

    /// Adds to a counter atomically. The previous value is not returned, because Linux 5.10 has no instruction for
    /// that.
    #[inline(always)]
    pub(crate) fn add_u32(&self, field: impl FnOnce(*mut T) -> *mut u32, by: u32) {
        // SAFETY: as above; the field is aligned, as its type says.
        unsafe { add::u32(field(self.value), by) };
    }

    /// Does the same as [`Self::add_u32`], for a `u64`.
    #[inline(always)]
    pub(crate) fn add_u64(&self, field: impl FnOnce(*mut T) -> *mut u64, by: u64) {
        // SAFETY: as above.
        unsafe { add::u64(field(self.value), by) };
    }

    /// Returns a part of the value as a slot.
    #[inline(always)]
    pub(crate) fn part<F>(&self, field: impl FnOnce(*mut T) -> *mut F) -> Slot<'a, F> {
        Slot { value: field(self.value), lifetime: PhantomData }
    }
}

/// Atomic additions. rustc has none for the BPF target, but LLVM's assembler has: `BPF_STX | BPF_XADD`. Source:
/// <https://www.kernel.org/doc/html/v6.12/bpf/standardization/instruction-set.html#atomic-operations>.
#[cfg(target_arch = "bpf")]
mod add {
    use core::arch::asm;

    /// SAFETY: `to` must be valid for reads and writes, and aligned.
    #[inline(always)]
    pub(super) unsafe fn u32(to: *mut u32, by: u32) {
        // SAFETY: as above.
        unsafe {
            asm!("lock *(u32 *)({to} + 0) += {by}", to = in(reg) to, by = in(reg) u64::from(by), options(nostack))
        };
    }

    /// SAFETY: as for `u32` above.
    #[inline(always)]
    pub(super) unsafe fn u64(to: *mut u64, by: u64) {
        // SAFETY: as above.
        unsafe { asm!("lock *(u64 *)({to} + 0) += {by}", to = in(reg) to, by = in(reg) by, options(nostack)) };
    }
}

#[cfg(not(target_arch = "bpf"))]
mod add {
    use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

    /// SAFETY: `to` must be valid for reads and writes, and aligned.
    pub(super) unsafe fn u32(to: *mut u32, by: u32) {
        // SAFETY: as above.
        unsafe { AtomicU32::from_ptr(to) }.fetch_add(by, Ordering::Relaxed);
    }

    /// SAFETY: as for `u32` above.
    pub(super) unsafe fn u64(to: *mut u64, by: u64) {
        // SAFETY: as above.
        unsafe { AtomicU64::from_ptr(to) }.fetch_add(by, Ordering::Relaxed);
    }
}

/// Selects a field of a [`Slot`]'s value.
macro_rules! field {
    ($name:ident) => {
        // SAFETY: only computes an address inside the value.
        |value| unsafe { &raw mut (*value).$name }
    };
}
pub(crate) use field;
