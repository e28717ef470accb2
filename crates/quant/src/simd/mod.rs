//! Vectors of `f32` lanes: one trait, one file per instruction set.
//!
//! A value of a [`Simd`] type is proof that the processor has the instructions, so that its methods are safe to call. What
//! remains unsafe are loads through raw pointers, used where a tile walks several rows at once.

#![allow(unsafe_code)] // Declares the raw loads.

#[cfg(target_arch = "x86_64")]
pub mod avx2;
#[cfg(target_arch = "x86_64")]
pub mod avx512;
mod scalar;

pub use scalar::Scalar;

/// The operations of one instruction set on vectors of [`Simd::LANES`] lanes.
///
/// Each operation is correctly rounded per lane, so results depend on the order of operations alone; [`Simd::mul_add`]
/// rounds once on AVX2 and AVX-512 and twice on [`Scalar`], where a fused operation would be a library call.
#[allow(clippy::missing_safety_doc)] // One contract for the five raw loads, stated at the first.
pub trait Simd: Copy + Send + Sync + 'static {
    /// Lanes of a vector: at most 16, and a divisor of 32 (the shortest block of a quantised format).
    const LANES: usize;
    /// `LANES` values of `f32`.
    type F: Copy;
    /// `LANES` values of `i32`.
    type I: Copy;

    /// The same value in every lane.
    fn splat(self, value: f32) -> Self::F;
    /// The first `LANES` values of a slice. Panics when it is shorter.
    fn load(self, from: &[f32]) -> Self::F;
    /// All values of a slice shorter than `LANES`, zeros behind them. Panics when it is longer.
    fn load_part(self, from: &[f32]) -> Self::F;
    /// Writes the first `LANES` values of a slice. Panics when it is shorter.
    fn store(self, value: Self::F, to: &mut [f32]);
    /// Writes a slice shorter than `LANES` and drops the lanes behind it. Panics when it is longer.
    fn store_part(self, value: Self::F, to: &mut [f32]);

    /// `a + b`
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a - b`
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b`
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a / b`
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `a` where `a < b`, else `b`: a NaN in `b` is kept, one in `a` is not.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a` where `a > b`, else `b`: a NaN in `b` is kept, one in `a` is not.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// The sum of all lanes, as a tree: halves are added to each other until one lane is left.
    fn sum(self, value: Self::F) -> f32;
    /// [`Simd::sum`] of four vectors, with the same bits.
    fn sum4(self, values: [Self::F; 4]) -> [f32; 4];
    /// The greatest lane.
    fn max_lane(self, value: Self::F) -> f32;

    /// Each lane's bits.
    fn bits(self, value: Self::F) -> Self::I;
    /// Lanes with these bits.
    fn with_bits(self, bits: Self::I) -> Self::F;
    /// The same integer in every lane.
    fn splat_int(self, value: i32) -> Self::I;
    /// `a + b`, wrapping.
    fn add_int(self, a: Self::I, b: Self::I) -> Self::I;
    /// `a - b`, wrapping.
    fn sub_int(self, a: Self::I, b: Self::I) -> Self::I;
    /// `a << N`
    fn shl_int<const N: u32>(self, a: Self::I) -> Self::I;
    /// `a >> N`, keeping the sign.
    fn shr_int<const N: u32>(self, a: Self::I) -> Self::I;

    /// `a & b`
    fn and_int(self, a: Self::I, b: Self::I) -> Self::I;
    /// `a | b`
    fn or_int(self, a: Self::I, b: Self::I) -> Self::I;
    /// `a >> n`, for `n` below 32, of lanes that are not negative.
    fn shr_int_by(self, a: Self::I, n: u32) -> Self::I;
    /// `bits >> (first + i)` in lane `i`; `first + LANES` is at most 32.
    fn shr_lanes(self, bits: u32, first: u32) -> Self::I;
    /// The nearest `f32` to each lane.
    fn int_to_f32(self, a: Self::I) -> Self::F;
    /// The first `LANES` bytes of a slice. Panics when it is shorter.
    fn load_bytes(self, from: &[u8]) -> Self::I;

    /// The value of a half precision number.
    fn widen_half(self, bits: u16) -> f32;
    /// The table's elements at 16 indices, each below 16.
    #[inline(always)]
    fn look_up(self, table: &[i8; 16], indices: [u8; 16]) -> [i8; 16] {
        indices.map(|index| table[usize::from(index & 0xF)])
    }

    /// Sixteen rows of 32 bytes as columns of four: word `r` of column `k` is bytes `4 k` to `4 k + 3` of row `r`, little-endian.
    #[inline(always)]
    fn transpose(self, rows: [&[u8; 32]; 16]) -> [[u32; 16]; 8] {
        std::array::from_fn(|k| rows.map(|row| u32::from_le_bytes(row.as_chunks().0[k])))
    }

    /// Asks for the cache line at an address, which may be any: nothing is read that is not there.
    fn prefetch(self, from: *const u8);
    /// `LANES` values of `f32`.
    ///
    /// # Safety
    /// `from` points to `LANES` values that may be read; any alignment will do. The same holds for the loads below, for
    /// values of the type named, and for `n < LANES` values where `n` is given.
    unsafe fn load_ptr(self, from: *const f32) -> Self::F;
    /// `n` values of `f32`, zeros behind them.
    unsafe fn load_ptr_part(self, from: *const f32, n: usize) -> Self::F;
    /// `LANES` values of IEEE half precision, widened exactly.
    unsafe fn load_f16(self, from: *const u8) -> Self::F;
    /// `n` values of half precision, zeros behind them.
    unsafe fn load_f16_part(self, from: *const u8, n: usize) -> Self::F;
    /// `LANES` values of bfloat16, widened exactly.
    unsafe fn load_bf16(self, from: *const u8) -> Self::F;
    /// `n` values of bfloat16, zeros behind them.
    unsafe fn load_bf16_part(self, from: *const u8, n: usize) -> Self::F;
    /// `LANES` signed bytes, as `f32`.
    unsafe fn load_i8(self, from: *const u8) -> Self::F;
    /// One value of half precision in every lane.
    unsafe fn splat_f16(self, from: *const u8) -> Self::F;
    /// Writes `LANES` values of `f32`.
    unsafe fn store_ptr(self, value: Self::F, to: *mut f32);
}

#[cfg(test)]
mod tests {
    use super::Simd;
    use crate::isa::{Isa, Kernel};

    struct Transpose<'a>([&'a [u8; 32]; 16]);

    impl Kernel for Transpose<'_> {
        type Output = [[u32; 16]; 8];
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> Self::Output {
            simd.transpose(self.0)
        }
    }

    #[test]
    fn every_instruction_set_transposes_alike() {
        let bytes: Vec<u8> = (0..512u32).map(|i| (i * 167 / 8) as u8).collect();
        let rows = std::array::from_fn(|r| &bytes.as_chunks().0[r]);
        for isa in Isa::available() {
            for (k, column) in isa.run(Transpose(rows)).iter().enumerate() {
                for (row, word) in rows.iter().zip(column) {
                    assert_eq!(row[4 * k..][..4], word.to_le_bytes(), "{isa:?}, column {k}");
                }
            }
        }
    }
}
