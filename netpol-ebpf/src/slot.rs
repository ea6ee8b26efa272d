//! A map's value that other CPUs and the agent write too.

use core::marker::PhantomData;

/// A value inside a map. Reads and writes are volatile and word by word: what another CPU writes at the same time is
/// seen or not, field by field, and nothing read here is trusted for more than timing, events and generations.
#[derive(Clone, Copy, Debug)]
pub struct Slot<'a, T> {
    value: *mut T,
    lifetime: PhantomData<&'a T>,
}

impl<T: Copy> Slot<'_, T> {
    /// A slot for the value there.
    ///
    /// # Safety
    /// `value` must be valid for reads and writes during the slot's lifetime, and nobody may hold a reference to it.
    #[inline(always)]
    pub const unsafe fn new(value: *mut T) -> Self {
        Self { value, lifetime: PhantomData }
    }

    /// Reads one field.
    #[inline(always)]
    pub fn read<F: Copy>(&self, field: impl FnOnce(*mut T) -> *mut F) -> F {
        // SAFETY: `new` demands a valid value; callers name a field of it with `&raw mut`.
        unsafe { field(self.value).read_volatile() }
    }

    /// Writes one field.
    #[inline(always)]
    pub fn write<F: Copy>(&self, field: impl FnOnce(*mut T) -> *mut F, new: F) {
        // SAFETY: as above.
        unsafe { field(self.value).write_volatile(new) }
    }
}

/// Names a field of a [`Slot`]'s value.
macro_rules! field {
    ($name:ident) => {
        // SAFETY: only computes an address inside the value.
        |value| unsafe { &raw mut (*value).$name }
    };
}
pub(crate) use field;
