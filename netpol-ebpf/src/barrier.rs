//! [`barrier`] hides from the compiler where a reference comes from. The compiler then reads and computes values again
//! instead of keeping them in the few registers or on the small stack. [`within`] hides a value from the verifier. The
//! verifier then checks the code that follows once, and not once for each possible value.

/// Returns the same reference, but hides its origin from the compiler, so that the compiler does not reuse values that
/// it read before. Like the kernel's `barrier_var`:
/// <https://github.com/torvalds/linux/blob/v6.12/include/linux/compiler.h>.
#[inline(always)]
pub(crate) fn barrier<T>(reference: &T) -> &T {
    #[cfg(target_arch = "bpf")]
    {
        let mut pointer = core::ptr::from_ref(reference);
        // SAFETY: the assembly has no instructions, so the pointer does not change.
        unsafe {
            core::arch::asm!("/* {0} */", inout(reg) pointer, options(pure, nomem, nostack, preserves_flags));
            &*pointer
        }
    }
    #[cfg(not(target_arch = "bpf"))]
    reference
}

/// Returns the value, but hides it from the verifier. The verifier then assumes any value within `MASK`, so all bits of
/// the value must be in `MASK`. `noise`: any number that the verifier does not know, such as the length of the packet.
#[inline(always)]
#[cfg_attr(not(target_arch = "bpf"), expect(unused_variables, reason = "only the verifier needs noise"))]
pub(crate) fn within<const MASK: i32>(value: u8, noise: u32) -> u8 {
    #[cfg(target_arch = "bpf")]
    {
        let mut hidden = u64::from(value);
        // SAFETY: computes in registers only. The verifier does not detect that the two XORs cancel out.
        unsafe {
            core::arch::asm!(
                "{value} ^= {noise}",
                "{value} ^= {noise}",
                "{value} &= {mask}",
                value = inout(reg) hidden,
                mask = const MASK,
                noise = in(reg) u64::from(noise),
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        hidden as u8
    }
    #[cfg(not(target_arch = "bpf"))]
    value
}
