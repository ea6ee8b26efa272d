//! Views of bytes that are known to be readable. Offsets are constants, and the compiler checks that all bytes are
//! inside the view.

use core::marker::PhantomData;

/// `N` bytes of the packet, copied to the stack. They are aligned, because the verifier requires this for reading words
/// from the stack.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bytes<const N: usize>(pub [u8; N]);

/// A view of `N` readable bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window<'a, const N: usize> {
    bytes: *const u8,
    lifetime: PhantomData<&'a [u8; N]>,
}

impl<'a, const N: usize> Window<'a, N> {
    /// Creates a window on bytes in memory.
    #[inline(always)]
    pub(crate) const fn of(bytes: &'a [u8; N]) -> Self {
        Self { bytes: bytes.as_ptr(), lifetime: PhantomData }
    }

    /// Creates a window on bytes at an address.
    ///
    /// # Safety
    /// `N` bytes must be readable there during the window's lifetime.
    #[cfg(target_arch = "bpf")]
    #[inline(always)]
    pub(crate) const unsafe fn at(bytes: *const u8) -> Self {
        Self { bytes, lifetime: PhantomData }
    }

    /// Returns `M` bytes from offset `O`.
    #[inline(always)]
    pub(crate) fn part<const O: usize, const M: usize>(&self) -> Window<'a, M> {
        const { assert!(O + M <= N) };
        // SAFETY: inside this window.
        Window { bytes: unsafe { self.bytes.add(O) }, lifetime: PhantomData }
    }

    /// Reads one byte.
    #[inline(always)]
    pub(crate) fn byte<const O: usize>(&self) -> u8 {
        const { assert!(O < N) };
        // SAFETY: inside this window.
        unsafe { self.bytes.add(O).read() }
    }

    /// Reads two bytes.
    #[inline(always)]
    pub(crate) fn two_bytes<const O: usize>(&self) -> [u8; 2] {
        const { assert!(O + 2 <= N) };
        // SAFETY: inside this window.
        unsafe { load_u16::<O>(self.bytes) }.to_ne_bytes()
    }

    /// Reads a 16-bit number in network byte order.
    #[inline(always)]
    pub(crate) fn u16_be<const O: usize>(self) -> u16 {
        u16::from_be_bytes(self.two_bytes::<O>())
    }

    /// Reads four bytes.
    #[inline(always)]
    pub(crate) fn four_bytes<const O: usize>(&self) -> [u8; 4] {
        const { assert!(O + 4 <= N) };
        // SAFETY: inside this window.
        unsafe { load_u32::<O>(self.bytes) }.to_ne_bytes()
    }

    /// Reads sixteen bytes.
    #[inline(always)]
    pub(crate) fn sixteen_bytes<const O: usize>(&self) -> [u8; 16] {
        const { assert!(O + 16 <= N) };
        // SAFETY: inside this window.
        unsafe { load_16_bytes::<O>(self.bytes) }
    }
}

/// Loads of several bytes with one instruction, in inline assembly. The compiler assumes that the bytes are unaligned,
/// and would load them one by one. The verifier allows unaligned access if the machine does
/// (`CONFIG_HAVE_EFFICIENT_UNALIGNED_ACCESS`).
#[cfg(target_arch = "bpf")]
mod loads {
    use core::arch::asm;

    macro_rules! load {
        ($name:ident, $size:literal, $type:ty) => {
            /// # Safety
            /// The bytes must be readable.
            #[inline(always)]
            #[allow(clippy::cast_possible_truncation, reason = "the upper bits are zero")]
            pub(super) unsafe fn $name<const O: usize>(bytes: *const u8) -> $type {
                let value: u64;
                // SAFETY: the caller guarantees it.
                unsafe {
                    asm!(
                        concat!("{value} = *(", $size, " *)({bytes} + {offset})"),
                        value = out(reg) value,
                        bytes = in(reg) bytes,
                        offset = const O,
                        options(pure, readonly, nostack, preserves_flags),
                    );
                }
                value as $type
            }
        };
    }
    load!(load_u16, "u16", u16);
    load!(load_u32, "u32", u32);

    /// # Safety
    /// The bytes must be readable.
    #[inline(always)]
    pub(super) unsafe fn load_16_bytes<const O: usize>(bytes: *const u8) -> [u8; 16] {
        // Four loads of four bytes, because the map keys to which the bytes are copied are aligned to four bytes.
        // SAFETY: the caller guarantees it.
        let words = unsafe {
            let rest = bytes.add(O);
            [load_u32::<0>(rest), load_u32::<4>(rest), load_u32::<8>(rest), load_u32::<12>(rest)]
        };
        bytemuck::cast(words)
    }
}

#[cfg(not(target_arch = "bpf"))]
mod loads {
    macro_rules! load {
        ($name:ident, $type:ty) => {
            /// # Safety
            /// The bytes must be readable.
            #[inline(always)]
            pub(super) unsafe fn $name<const O: usize>(bytes: *const u8) -> $type {
                // SAFETY: the caller guarantees it.
                unsafe { bytes.add(O).cast::<$type>().read_unaligned() }
            }
        };
    }
    load!(load_u16, u16);
    load!(load_u32, u32);
    load!(load_16_bytes, [u8; 16]);
}

use loads::{load_16_bytes, load_u16, load_u32};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_bytes_at_their_offset() {
        let bytes: [u8; 20] = core::array::from_fn(|i| u8::try_from(i).unwrap());
        let window = Window::of(&bytes);
        assert_eq!(window.byte::<19>(), 19);
        assert_eq!(window.two_bytes::<3>(), [3, 4]);
        assert_eq!(window.u16_be::<3>(), 0x0304);
        assert_eq!(window.four_bytes::<1>(), [1, 2, 3, 4]);
        assert_eq!(window.sixteen_bytes::<4>()[15], 19);
        assert_eq!(window.part::<10, 4>().four_bytes::<0>(), [10, 11, 12, 13]);
    }
}
