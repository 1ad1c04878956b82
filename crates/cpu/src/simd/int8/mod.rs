//! The integer half of the vocabulary: 64 codes of up to 8 bits, their products with signed bytes, and the small number
//! types that factors are stored in.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;

/// Sixty-four bytes and sixteen sums of four products each; supertrait of [`Simd`](super::Simd).
///
/// # Safety
/// As for [`Simd`](super::Simd): features enabled, pointers valid for what the method names.
#[allow(clippy::missing_safety_doc)]
pub trait Int8: Copy + Send + Sync + 'static {
    /// Sixteen `f32` lanes.
    type F: Copy;
    /// Sixty-four bytes.
    type V: Copy;
    /// Sixteen `i32` lanes.
    type I: Copy;
    /// Whether [`Int8::dot_bytes`] takes bytes of the full range at the price of small ones.
    const FULL: bool;
    /// Rows of activations in a tile of integer products.
    const BYTE_ROWS: usize;

    /// Loads 64 bytes.
    unsafe fn bytes(p: *const u8) -> Self::V;
    /// Stores 64 bytes.
    unsafe fn store_bytes(p: *mut u8, v: Self::V);
    /// `(v >> S) & MASK` in each byte, for masks of at most `8 - S` bits.
    unsafe fn field<const S: u32, const MASK: u8>(v: Self::V) -> Self::V;
    /// `base | ((v >> S) & MASK) << T` in each byte.
    unsafe fn insert<const S: u32, const MASK: u8, const T: u32>(base: Self::V, v: Self::V) -> Self::V;
    /// The 16 bytes at `p`, once for each quarter: a table for [`Int8::look_up`].
    unsafe fn table(p: *const u8) -> Self::V;
    /// `table[v]` for each byte, all below 16.
    unsafe fn look_up(table: Self::V, v: Self::V) -> Self::V;
    /// The `i32` at `p` in all lanes.
    unsafe fn splat_i32(p: *const i32) -> Self::I;
    /// Adds to lane `i` the products of bytes `4 i .. 4 i + 4` of `w` (unsigned; below 128 unless `WIDE`) with the four
    /// signed bytes at `x`.
    unsafe fn dot_bytes<const WIDE: bool>(acc: Self::I, w: Self::V, x: *const u8) -> Self::I;
    /// Sums of nothing.
    unsafe fn no_sums() -> Self::I;
    /// `a + b`.
    unsafe fn add_sums(a: Self::I, b: Self::I) -> Self::I;
    /// The sums as floats, rounded to nearest.
    unsafe fn to_f32(acc: Self::I) -> Self::F;

    /// Loads sixteen unsigned bytes as floats.
    unsafe fn load_u8(p: *const u8) -> Self::F;
    /// Loads sixteen signed bytes as floats.
    unsafe fn load_i8(p: *const u8) -> Self::F;
    /// Stores sixteen integers of -128 to 127 as signed bytes; another number becomes any byte.
    unsafe fn store_i8(p: *mut u8, v: Self::F);
    /// Loads sixteen E4M3 numbers (without infinities; NaN becomes 480).
    unsafe fn load_e4m3(p: *const u8) -> Self::F;
    /// Loads sixteen quads of signed bytes: vector `j` has number `j` of each quad.
    unsafe fn load_i8_quads(p: *const u8) -> [Self::F; 4];
    /// Loads sixteen quads of E4M3 numbers (as [`Int8::load_e4m3`]): vector `j` has number `j` of each quad.
    unsafe fn load_e4m3_quads(p: *const u8) -> [Self::F; 4];
    /// Loads sixteen E8M0 powers of two (2^-127 becomes 0 where subnormal numbers are flushed; NaN becomes infinite).
    unsafe fn load_e8m0(p: *const u8) -> Self::F;
}
