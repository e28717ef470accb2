//! Vectors of eight lanes: AVX2, FMA and F16C.
//!
//! The methods are `#[inline(always)]` and enable nothing themselves: they become vector instructions once inlined into
//! [`Avx2::run`], the one function here that enables the instruction set.
#![allow(unsafe_code)] // Intrinsics and raw loads.

use super::Simd;
use crate::isa::Kernel;
use std::arch::x86_64::*;

/// Proof that this processor has AVX2, FMA and F16C.
#[derive(Debug, Clone, Copy)]
pub struct Avx2(pub(super) ());

const N: usize = 8;

impl Avx2 {
    /// The proof, if the processor and the operating system support the instructions.
    #[inline]
    pub fn detect() -> Option<Avx2> {
        let has =
            is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
        has.then_some(Avx2(()))
    }

    /// Runs `kernel` compiled for AVX2.
    #[inline]
    pub fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx2,fma,f16c")]
        fn compiled<K: Kernel>(simd: Avx2, kernel: K) -> K::Output {
            kernel.run(simd)
        }
        // SAFETY: `self` proves that the features are there.
        unsafe { compiled(self, kernel) }
    }
}

/// The mask of the first `n` lanes, as AVX2's masked loads want it: the sign bit of each.
#[inline(always)]
fn mask(n: usize) -> __m256i {
    debug_assert!(n < N);
    const ONES_THEN_ZEROS: [i32; 2 * N] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];
    // SAFETY: N values from index N - n <= N on lie within the table; only called with a proof of AVX2.
    unsafe { _mm256_loadu_si256(ONES_THEN_ZEROS[N - n..][..N].as_ptr().cast()) }
}

/// Eight values of two bytes, of which `n` are read and the others zero: AVX2 has no masked load of 16-bit lanes.
///
/// # Safety
/// `2 * n` bytes may be read from `from`, and the processor has AVX2.
#[inline(always)]
unsafe fn halves_part(from: *const u8, n: usize) -> __m128i {
    debug_assert!(n < N);
    let mut copy = [0u16; N];
    // SAFETY: the caller vouches for 2 * n bytes, and the copy has room for 2 * N.
    unsafe {
        std::ptr::copy_nonoverlapping(from, copy.as_mut_ptr().cast(), 2 * n);
        _mm_loadu_si128(copy.as_ptr().cast())
    }
}

// SAFETY of every block below: `self` proves that the processor has the instructions; slices are checked for their length
// before the pointer is taken; the callers of raw loads vouch for the memory, and masked lanes are not touched.
#[allow(clippy::undocumented_unsafe_blocks)] // The argument is the one above for each of them.
impl Simd for Avx2 {
    const LANES: usize = N;
    type F = __m256;
    type I = __m256i;

    #[inline(always)]
    fn splat(self, value: f32) -> __m256 {
        unsafe { _mm256_set1_ps(value) }
    }
    #[inline(always)]
    fn load(self, from: &[f32]) -> __m256 {
        let from = &from[..N];
        unsafe { _mm256_loadu_ps(from.as_ptr()) }
    }
    #[inline(always)]
    fn load_part(self, from: &[f32]) -> __m256 {
        assert!(from.len() < N);
        unsafe { _mm256_maskload_ps(from.as_ptr(), mask(from.len())) }
    }
    #[inline(always)]
    fn store(self, value: __m256, to: &mut [f32]) {
        let to = &mut to[..N];
        unsafe { _mm256_storeu_ps(to.as_mut_ptr(), value) }
    }
    #[inline(always)]
    fn store_part(self, value: __m256, to: &mut [f32]) {
        assert!(to.len() < N);
        unsafe { _mm256_maskstore_ps(to.as_mut_ptr(), mask(to.len()), value) }
    }

    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_div_ps(a, b) }
    }
    #[inline(always)]
    fn mul_add(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn min(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_min_ps(a, b) }
    }
    #[inline(always)]
    fn max(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_max_ps(a, b) }
    }
    #[inline(always)]
    fn sum(self, v: __m256) -> f32 {
        unsafe {
            let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
        }
    }
    #[inline(always)]
    fn sum4(self, [a, b, c, d]: [__m256; 4]) -> [f32; 4] {
        // The additions of `sum`, on four vectors at once: first halves of two beside each other, then quarters of all.
        unsafe {
            let ab = _mm256_add_ps(_mm256_permute2f128_ps::<0x20>(a, b), _mm256_permute2f128_ps::<0x31>(a, b));
            let cd = _mm256_add_ps(_mm256_permute2f128_ps::<0x20>(c, d), _mm256_permute2f128_ps::<0x31>(c, d));
            // Per half: (a0, a1, c0, c1) + (a2, a3, c2, c3), and b with d in the upper half.
            let v =
                _mm256_add_ps(_mm256_shuffle_ps::<0b01_00_01_00>(ab, cd), _mm256_shuffle_ps::<0b11_10_11_10>(ab, cd));
            let v = _mm256_add_ps(v, _mm256_movehdup_ps(v));
            let mut all = [0.0; 8];
            _mm256_storeu_ps(all.as_mut_ptr(), v);
            [all[0], all[4], all[2], all[6]]
        }
    }
    #[inline(always)]
    fn max_lane(self, v: __m256) -> f32 {
        unsafe {
            let v = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_max_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_max_ss(v, _mm_movehdup_ps(v)))
        }
    }

    #[inline(always)]
    fn bits(self, value: __m256) -> __m256i {
        unsafe { _mm256_castps_si256(value) }
    }
    #[inline(always)]
    fn with_bits(self, bits: __m256i) -> __m256 {
        unsafe { _mm256_castsi256_ps(bits) }
    }
    #[inline(always)]
    fn splat_int(self, value: i32) -> __m256i {
        unsafe { _mm256_set1_epi32(value) }
    }
    #[inline(always)]
    fn add_int(self, a: __m256i, b: __m256i) -> __m256i {
        unsafe { _mm256_add_epi32(a, b) }
    }
    #[inline(always)]
    fn sub_int(self, a: __m256i, b: __m256i) -> __m256i {
        unsafe { _mm256_sub_epi32(a, b) }
    }
    #[inline(always)]
    fn shl_int<const S: u32>(self, a: __m256i) -> __m256i {
        unsafe { _mm256_sll_epi32(a, _mm_cvtsi32_si128(S as i32)) }
    }
    #[inline(always)]
    fn shr_int<const S: u32>(self, a: __m256i) -> __m256i {
        unsafe { _mm256_sra_epi32(a, _mm_cvtsi32_si128(S as i32)) }
    }

    #[inline(always)]
    fn and_int(self, a: __m256i, b: __m256i) -> __m256i {
        unsafe { _mm256_and_si256(a, b) }
    }
    #[inline(always)]
    fn or_int(self, a: __m256i, b: __m256i) -> __m256i {
        unsafe { _mm256_or_si256(a, b) }
    }
    #[inline(always)]
    fn shr_int_by(self, a: __m256i, n: u32) -> __m256i {
        unsafe { _mm256_srl_epi32(a, _mm_cvtsi32_si128(n as i32)) }
    }
    #[inline(always)]
    fn shr_lanes(self, bits: u32, first: u32) -> __m256i {
        unsafe {
            let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            _mm256_srlv_epi32(_mm256_set1_epi32((bits >> (first & 31)) as i32), lanes)
        }
    }
    #[inline(always)]
    fn int_to_f32(self, a: __m256i) -> __m256 {
        unsafe { _mm256_cvtepi32_ps(a) }
    }
    #[inline(always)]
    fn load_bytes(self, from: &[u8]) -> __m256i {
        let from = &from[..N];
        unsafe { _mm256_cvtepu8_epi32(_mm_loadl_epi64(from.as_ptr().cast())) }
    }

    #[inline(always)]
    fn widen_half(self, bits: u16) -> f32 {
        unsafe { _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(bits)))) }
    }
    #[inline(always)]
    fn look_up(self, table: &[i8; 16], indices: [u8; 16]) -> [i8; 16] {
        let mut out = [0i8; 16];
        unsafe {
            let table = _mm_loadu_si128(table.as_ptr().cast());
            let indices = _mm_loadu_si128(indices.as_ptr().cast());
            _mm_storeu_si128(out.as_mut_ptr().cast(), _mm_shuffle_epi8(table, indices));
        }
        out
    }

    #[inline(always)]
    fn prefetch(self, from: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(from.cast()) }
    }
    #[inline(always)]
    unsafe fn load_ptr(self, from: *const f32) -> __m256 {
        unsafe { _mm256_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn load_ptr_part(self, from: *const f32, n: usize) -> __m256 {
        unsafe { _mm256_maskload_ps(from, mask(n)) }
    }
    #[inline(always)]
    unsafe fn load_f16(self, from: *const u8) -> __m256 {
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
    }
    #[inline(always)]
    unsafe fn load_f16_part(self, from: *const u8, n: usize) -> __m256 {
        unsafe { _mm256_cvtph_ps(halves_part(from, n)) }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, from: *const u8) -> __m256 {
        unsafe {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        }
    }
    #[inline(always)]
    unsafe fn load_bf16_part(self, from: *const u8, n: usize) -> __m256 {
        unsafe {
            let wide = _mm256_cvtepu16_epi32(halves_part(from, n));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        }
    }
    #[inline(always)]
    unsafe fn load_i8(self, from: *const u8) -> __m256 {
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(from.cast()))) }
    }
    #[inline(always)]
    unsafe fn splat_f16(self, from: *const u8) -> __m256 {
        unsafe { _mm256_cvtph_ps(_mm_set1_epi16(from.cast::<i16>().read_unaligned())) }
    }
    #[inline(always)]
    unsafe fn store_ptr(self, value: __m256, to: *mut f32) {
        unsafe { _mm256_storeu_ps(to, value) }
    }
}
