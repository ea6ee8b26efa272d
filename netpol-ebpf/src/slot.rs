//! Access to map values that other CPUs and the agent also write.

use core::marker::PhantomData;

/// A value inside a map. Each field is read and written separately, by volatile accesses. So a concurrent write of
/// another CPU may be visible in some fields and not yet in others. This is acceptable, because the values are used
/// only for timing, events, counters and flow state.
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
    pub(crate) fn read<F: Copy>(&self, field: Field<T, F>) -> F {
        // SAFETY: `new` requires a valid value, and the field is inside it.
        unsafe { self.address(field).read_volatile() }
    }

    /// Writes one field.
    #[inline(always)]
    pub(crate) fn write<F: Copy>(&self, field: Field<T, F>, new: F) {
        // SAFETY: as above.
        unsafe { self.address(field).write_volatile(new) }
    }

    /// Writes the first eight bytes of the value in one step.
    #[inline(always)]
    pub(crate) fn write_first_word(&self, word: u64) {
        const { assert!(size_of::<T>() >= 8 && align_of::<T>() >= 8) };
        // SAFETY: as above; the value has eight bytes, and is aligned.
        unsafe { self.value.cast::<u64>().write_volatile(word) }
    }

    /// Adds to a counter atomically. The previous value is not returned, because Linux 5.10 has no instruction for
    /// this.
    #[inline(always)]
    pub(crate) fn add_u32(&self, field: Field<T, u32>, by: u32) {
        // SAFETY: as above; the field is aligned, as its type requires.
        unsafe { add::u32(self.address(field), by) };
    }

    /// Does the same as [`Self::add_u32`], for a `u64`.
    #[inline(always)]
    pub(crate) fn add_u64(&self, field: Field<T, u64>, by: u64) {
        // SAFETY: as above.
        unsafe { add::u64(self.address(field), by) };
    }

    /// Adds to a counter without an atomic operation: if two CPUs add at the same time, one of the additions may be
    /// lost.
    #[inline(always)]
    pub(crate) fn add_unlocked(self, field: Field<T, u64>, by: u64) {
        self.write(field, self.read(field).wrapping_add(by));
    }

    /// Returns a part of the value as a slot.
    #[inline(always)]
    pub(crate) fn part<F>(&self, field: Field<T, F>) -> Slot<'a, F> {
        Slot { value: self.address(field), lifetime: PhantomData }
    }

    #[inline(always)]
    fn address<F>(&self, field: Field<T, F>) -> *mut F {
        // SAFETY: the field is inside the value.
        unsafe { self.value.byte_add(field.offset).cast() }
    }
}

impl<'a, T: Copy, const N: usize> Slot<'a, [T; N]> {
    /// Returns an element as a slot. Panics if the index is out of bounds.
    #[inline(always)]
    pub(crate) fn element(&self, index: usize) -> Slot<'a, T> {
        // SAFETY: only computes an address inside the value.
        Slot { value: unsafe { &raw mut (*self.value)[index] }, lifetime: PhantomData }
    }
}

/// A field of `T` that has the type `F`, see [`field!`].
pub(crate) struct Field<T, F> {
    offset: usize,
    types: PhantomData<fn(T) -> F>,
}

impl<T, F> Clone for Field<T, F> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<T, F> Copy for Field<T, F> {}

impl<T, F> Field<T, F> {
    /// Creates a field at an offset. `_field` is not called: the compiler only infers the field's type from it.
    ///
    /// # Safety
    /// `T` must have a field of type `F` at this offset.
    pub(crate) const unsafe fn new(offset: usize, _field: fn(&T) -> &F) -> Self {
        Self { offset, types: PhantomData }
    }
}

/// Selects a field of a [`Slot`]'s value, at compile time.
macro_rules! field {
    ($type:ident, $name:ident) => {
        const {
            // SAFETY: the offset and the type are those of this field.
            unsafe { $crate::slot::Field::<$type, _>::new(core::mem::offset_of!($type, $name), |value| &value.$name) }
        }
    };
}
pub(crate) use field;

/// Atomic additions. rustc has none for the BPF target, but LLVM's assembler has: `BPF_STX | BPF_XADD`. Source:
/// <https://www.kernel.org/doc/html/v6.12/bpf/standardization/instruction-set.html#atomic-operations>.
#[cfg(target_arch = "bpf")]
mod add {
    use core::arch::asm;

    /// # Safety
    /// `to` must be valid for reads and writes, and aligned.
    #[inline(always)]
    pub(super) unsafe fn u32(to: *mut u32, by: u32) {
        // SAFETY: the caller guarantees it.
        unsafe {
            asm!("lock *(u32 *)({to} + 0) += {by}", to = in(reg) to, by = in(reg) u64::from(by), options(nostack))
        };
    }

    /// # Safety
    /// As for `u32` above.
    #[inline(always)]
    pub(super) unsafe fn u64(to: *mut u64, by: u64) {
        // SAFETY: as above.
        unsafe { asm!("lock *(u64 *)({to} + 0) += {by}", to = in(reg) to, by = in(reg) by, options(nostack)) };
    }
}

#[cfg(not(target_arch = "bpf"))]
mod add {
    use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

    /// # Safety
    /// `to` must be valid for reads and writes, and aligned.
    pub(super) unsafe fn u32(to: *mut u32, by: u32) {
        // SAFETY: as above.
        unsafe { AtomicU32::from_ptr(to) }.fetch_add(by, Ordering::Relaxed);
    }

    /// # Safety
    /// As for `u32` above.
    pub(super) unsafe fn u64(to: *mut u64, by: u64) {
        // SAFETY: as above.
        unsafe { AtomicU64::from_ptr(to) }.fetch_add(by, Ordering::Relaxed);
    }
}
