//! Optimization barriers: the compiler computes a value again instead of keeping it in one of the few registers or on
//! the small stack.

/// Returns the same reference, but hides its origin from the compiler, which then does not reuse what it read before.
/// Like the kernel's `barrier_var`: <https://github.com/torvalds/linux/blob/v6.12/include/linux/compiler.h>.
#[inline(always)]
pub(crate) fn barrier<T>(reference: &T) -> &T {
    #[cfg(target_arch = "bpf")]
    {
        let mut pointer = core::ptr::from_ref(reference);
        // SAFETY: there are no instructions, so the pointer does not change.
        unsafe {
            core::arch::asm!("/* {0} */", inout(reg) pointer, options(pure, nomem, nostack, preserves_flags));
            &*pointer
        }
    }
    #[cfg(not(target_arch = "bpf"))]
    reference
}
