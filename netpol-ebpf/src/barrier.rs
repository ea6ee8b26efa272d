//! Keeps the compiler from holding on to what is cheap to compute again: registers and stack are short.

/// The same reference; to the compiler, what is read through it has nothing to do with what was read before. As the kernel's
/// `barrier_var`: <https://github.com/torvalds/linux/blob/v6.12/include/linux/compiler.h>.
#[inline(always)]
pub(crate) fn barrier<T>(reference: &T) -> &T {
    #[cfg(target_arch = "bpf")]
    {
        let mut pointer = core::ptr::from_ref(reference);
        // SAFETY: no instructions, so the pointer stays what it is.
        unsafe {
            core::arch::asm!("/* {0} */", inout(reg) pointer, options(pure, nomem, nostack, preserves_flags));
            &*pointer
        }
    }
    #[cfg(not(target_arch = "bpf"))]
    reference
}
