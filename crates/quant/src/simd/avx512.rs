//! Vectors of sixteen lanes: AVX-512 F, BW, DQ and VL.
//!
//! The methods are `#[inline(always)]` and enable nothing themselves: they become vector instructions once inlined into
//! [`Avx512::run`], the one function here that enables the instruction set.
#![allow(unsafe_code)] // Intrinsics and raw loads.

use super::Simd;
use super::avx2::Avx2;
use crate::isa::Kernel;
use std::arch::x86_64::*;

/// Proof that this processor has AVX-512 F, BW, DQ and VL.
#[derive(Debug, Clone, Copy)]
pub struct Avx512(());

const N: usize = 16;

impl Avx512 {
    /// The proof, if the processor and the operating system support the instructions.
    #[inline]
    pub fn detect() -> Option<Avx512> {
        let has = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        has.then_some(Avx512(()))
    }

    /// AVX2, which a processor with these instructions has too: for what is 16 bytes wide.
    #[inline(always)]
    fn avx2(self) -> Avx2 {
        Avx2(())
    }

    /// Runs `kernel` compiled for AVX-512.
    #[inline]
    pub fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
        fn compiled<K: Kernel>(simd: Avx512, kernel: K) -> K::Output {
            kernel.run(simd)
        }
        // SAFETY: `self` proves that the features are there.
        unsafe { compiled(self, kernel) }
    }
}

#[inline(always)]
fn mask(n: usize) -> __mmask16 {
    debug_assert!(n < 16);
    ((1u32 << n) - 1) as __mmask16
}

// SAFETY of every block below: `self` proves that the processor has the instructions; slices are checked for their length
// before the pointer is taken; the callers of raw loads vouch for the memory, and masked lanes are not touched.
#[allow(clippy::undocumented_unsafe_blocks)] // The argument is the one above for each of them.
impl Simd for Avx512 {
    const LANES: usize = N;
    type F = __m512;
    type I = __m512i;

    #[inline(always)]
    fn splat(self, value: f32) -> __m512 {
        unsafe { _mm512_set1_ps(value) }
    }
    #[inline(always)]
    fn load(self, from: &[f32]) -> __m512 {
        let from = &from[..N];
        unsafe { _mm512_loadu_ps(from.as_ptr()) }
    }
    #[inline(always)]
    fn load_part(self, from: &[f32]) -> __m512 {
        assert!(from.len() < N);
        unsafe { _mm512_maskz_loadu_ps(mask(from.len()), from.as_ptr()) }
    }
    #[inline(always)]
    fn store(self, value: __m512, to: &mut [f32]) {
        let to = &mut to[..N];
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), value) }
    }
    #[inline(always)]
    fn store_part(self, value: __m512, to: &mut [f32]) {
        assert!(to.len() < N);
        unsafe { _mm512_mask_storeu_ps(to.as_mut_ptr(), mask(to.len()), value) }
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    fn sum(self, v: __m512) -> f32 {
        unsafe {
            let v = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v));
            let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
        }
    }
    #[inline(always)]
    fn sum4(self, [a, b, c, d]: [__m512; 4]) -> [f32; 4] {
        // The additions of `sum`, on four vectors at once: first halves of a and b beside each other, then quarters of all.
        unsafe {
            let ab = _mm512_add_ps(_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0xEE>(a, b));
            let cd = _mm512_add_ps(_mm512_shuffle_f32x4::<0x44>(c, d), _mm512_shuffle_f32x4::<0xEE>(c, d));
            let v = _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(ab, cd), _mm512_shuffle_f32x4::<0xDD>(ab, cd));
            let v = _mm512_add_ps(v, _mm512_permute_ps::<0b11_10_11_10>(v));
            let v = _mm512_add_ps(v, _mm512_movehdup_ps(v));
            let firsts = _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
            let mut out = [0.0; 4];
            _mm_storeu_ps(out.as_mut_ptr(), _mm512_castps512_ps128(_mm512_permutexvar_ps(firsts, v)));
            out
        }
    }
    #[inline(always)]
    fn max_lane(self, v: __m512) -> f32 {
        unsafe { _mm512_reduce_max_ps(v) }
    }

    #[inline(always)]
    fn bits(self, value: __m512) -> __m512i {
        unsafe { _mm512_castps_si512(value) }
    }
    #[inline(always)]
    fn with_bits(self, bits: __m512i) -> __m512 {
        unsafe { _mm512_castsi512_ps(bits) }
    }
    #[inline(always)]
    fn splat_int(self, value: i32) -> __m512i {
        unsafe { _mm512_set1_epi32(value) }
    }
    #[inline(always)]
    fn add_int(self, a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_add_epi32(a, b) }
    }
    #[inline(always)]
    fn sub_int(self, a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_sub_epi32(a, b) }
    }
    #[inline(always)]
    fn shl_int<const S: u32>(self, a: __m512i) -> __m512i {
        unsafe { _mm512_slli_epi32::<S>(a) }
    }
    #[inline(always)]
    fn shr_int<const S: u32>(self, a: __m512i) -> __m512i {
        unsafe { _mm512_srai_epi32::<S>(a) }
    }

    #[inline(always)]
    fn and_int(self, a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_and_si512(a, b) }
    }
    #[inline(always)]
    fn or_int(self, a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_or_si512(a, b) }
    }
    #[inline(always)]
    fn shr_int_by(self, a: __m512i, n: u32) -> __m512i {
        unsafe { _mm512_srl_epi32(a, _mm_cvtsi32_si128(n as i32)) }
    }
    #[inline(always)]
    fn shr_lanes(self, bits: u32, first: u32) -> __m512i {
        unsafe {
            let lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
            _mm512_srlv_epi32(_mm512_set1_epi32((bits >> (first & 31)) as i32), lanes)
        }
    }
    #[inline(always)]
    fn int_to_f32(self, a: __m512i) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(a) }
    }
    #[inline(always)]
    fn load_bytes(self, from: &[u8]) -> __m512i {
        let from = &from[..N];
        unsafe { _mm512_cvtepu8_epi32(_mm_loadu_si128(from.as_ptr().cast())) }
    }

    #[inline(always)]
    fn widen_half(self, bits: u16) -> f32 {
        self.avx2().widen_half(bits)
    }
    #[inline(always)]
    fn look_up(self, table: &[i8; 16], indices: [u8; 16]) -> [i8; 16] {
        self.avx2().look_up(table, indices)
    }

    #[inline(always)]
    fn transpose(self, rows: [&[u8; 32]; 16]) -> [[u32; 16]; 8] {
        unsafe {
            let mut columns = [[0; 16]; 8];
            for (half, columns) in columns.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                let mut fours = [_mm512_setzero_si512(); 4];
                // What follows stays within quarters of a vector.
                for (i, to) in fours.iter_mut().enumerate() {
                    let from = [rows[i], rows[i + 4], rows[i + 8], rows[i + 12]];
                    let low = _mm512_castsi128_si512(_mm_loadu_si128(from[0].as_ptr().add(16 * half).cast()));
                    let low = _mm512_inserti32x4::<1>(low, _mm_loadu_si128(from[1].as_ptr().add(16 * half).cast()));
                    let low = _mm512_inserti32x4::<2>(low, _mm_loadu_si128(from[2].as_ptr().add(16 * half).cast()));
                    *to = _mm512_inserti32x4::<3>(low, _mm_loadu_si128(from[3].as_ptr().add(16 * half).cast()));
                }
                let [a, b, c, d] = fours;
                let (ab, cd) = (_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d));
                let (ab_high, cd_high) = (_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
                _mm512_storeu_si512(columns[0].as_mut_ptr().cast(), _mm512_unpacklo_epi64(ab, cd));
                _mm512_storeu_si512(columns[1].as_mut_ptr().cast(), _mm512_unpackhi_epi64(ab, cd));
                _mm512_storeu_si512(columns[2].as_mut_ptr().cast(), _mm512_unpacklo_epi64(ab_high, cd_high));
                _mm512_storeu_si512(columns[3].as_mut_ptr().cast(), _mm512_unpackhi_epi64(ab_high, cd_high));
            }
            columns
        }
    }
    #[inline(always)]
    fn prefetch(self, from: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(from.cast()) }
    }
    #[inline(always)]
    unsafe fn load_ptr(self, from: *const f32) -> __m512 {
        unsafe { _mm512_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn load_ptr_part(self, from: *const f32, n: usize) -> __m512 {
        unsafe { _mm512_maskz_loadu_ps(mask(n), from) }
    }
    #[inline(always)]
    unsafe fn load_f16(self, from: *const u8) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
    }
    #[inline(always)]
    unsafe fn load_f16_part(self, from: *const u8, n: usize) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask(n), from.cast())) }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, from: *const u8) -> __m512 {
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }
    #[inline(always)]
    unsafe fn load_bf16_part(self, from: *const u8, n: usize) -> __m512 {
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask(n), from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }
    #[inline(always)]
    unsafe fn load_i8(self, from: *const u8) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast()))) }
    }
    #[inline(always)]
    unsafe fn splat_f16(self, from: *const u8) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_set1_epi16(from.cast::<i16>().read_unaligned())) }
    }
    #[inline(always)]
    unsafe fn store_ptr(self, value: __m512, to: *mut f32) {
        unsafe { _mm512_storeu_ps(to, value) }
    }
}
