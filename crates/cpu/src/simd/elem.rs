//! Numbers as they lie in memory.

use super::Simd;

/// Elements as they lie in memory, widened to `f32` on the way in.
pub(crate) trait Elem: Copy {
    /// Bytes of one.
    const SIZE: usize;
    /// Loads sixteen.
    unsafe fn load<S: Simd>(p: *const u8) -> S::F;
}

macro_rules! elems {
    ($($(#[$doc:meta])* $name:ident: $size:literal, $load:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy)]
        pub(crate) struct $name;

        impl Elem for $name {
            const SIZE: usize = $size;
            #[inline(always)]
            unsafe fn load<S: Simd>(p: *const u8) -> S::F {
                // SAFETY: the caller vouches for sixteen elements.
                unsafe { S::$load(p.cast()) }
            }
        }
    )*};
}

elems! {
    /// Single precision.
    F32: 4, load;
    /// Half precision.
    F16: 2, load_f16;
    /// The upper half of single precision.
    Bf16: 2, load_bf16;
    /// 8-bit floats with three bits of mantissa.
    E4m3: 1, load_e4m3;
    /// Powers of two.
    E8m0: 1, load_e8m0;
    /// Signed bytes.
    I8: 1, load_i8;
    /// Unsigned bytes.
    U8: 1, load_u8;
}
