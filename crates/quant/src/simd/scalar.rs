//! Portable vectors: arrays of eight lanes.
#![allow(unsafe_code)] // Raw loads, as the trait asks.

use super::Simd;

/// Eight lanes in plain Rust.
#[derive(Debug, Clone, Copy)]
pub struct Scalar;

const N: usize = 8;

#[inline(always)]
fn map2<T: Copy, U: Copy + Default>(a: [T; N], b: [T; N], f: impl Fn(T, T) -> U) -> [U; N] {
    let mut out = [U::default(); N];
    for i in 0..N {
        out[i] = f(a[i], b[i]);
    }
    out
}

#[inline(always)]
fn map<T: Copy, U: Copy + Default>(a: [T; N], f: impl Fn(T) -> U) -> [U; N] {
    map2(a, a, |x, _| f(x))
}

/// Reads `n` values of two bytes, little-endian.
///
/// # Safety
/// `2 * n` bytes may be read from `from`, and `n <= N`.
#[inline(always)]
unsafe fn halves(from: *const u8, n: usize, widen: impl Fn(u16) -> f32) -> [f32; N] {
    let mut out = [0.0; N];
    for (i, out) in out.iter_mut().enumerate().take(n) {
        // SAFETY: i < n, and the caller vouches for 2 * n bytes.
        let bits = unsafe { [*from.add(2 * i), *from.add(2 * i + 1)] };
        *out = widen(u16::from_le_bytes(bits));
    }
    out
}

#[inline(always)]
fn widen_f16(bits: u16) -> f32 {
    // Not `half::f16::to_f32`: that asks the processor for F16C on every call.
    half::f16::from_bits(bits).to_f32_const()
}

#[inline(always)]
fn widen_bf16(bits: u16) -> f32 {
    f32::from_bits((bits as u32) << 16)
}

impl Simd for Scalar {
    const LANES: usize = N;
    type F = [f32; N];
    type I = [i32; N];

    #[inline(always)]
    fn splat(self, value: f32) -> [f32; N] {
        [value; N]
    }
    #[inline(always)]
    fn load(self, from: &[f32]) -> [f32; N] {
        from[..N].try_into().expect("N values")
    }
    #[inline(always)]
    fn load_part(self, from: &[f32]) -> [f32; N] {
        let mut out = [0.0; N];
        out[..from.len()].copy_from_slice(from);
        out
    }
    #[inline(always)]
    fn store(self, value: [f32; N], to: &mut [f32]) {
        to[..N].copy_from_slice(&value);
    }
    #[inline(always)]
    fn store_part(self, value: [f32; N], to: &mut [f32]) {
        to.copy_from_slice(&value[..to.len()]);
    }

    #[inline(always)]
    fn add(self, a: [f32; N], b: [f32; N]) -> [f32; N] {
        map2(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: [f32; N], b: [f32; N]) -> [f32; N] {
        map2(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: [f32; N], b: [f32; N]) -> [f32; N] {
        map2(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, a: [f32; N], b: [f32; N]) -> [f32; N] {
        map2(a, b, |a, b| a / b)
    }
    #[inline(always)]
    fn mul_add(self, a: [f32; N], b: [f32; N], mut c: [f32; N]) -> [f32; N] {
        for i in 0..N {
            c[i] += a[i] * b[i];
        }
        c
    }
    #[inline(always)]
    fn min(self, a: [f32; N], b: [f32; N]) -> [f32; N] {
        map2(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn max(self, a: [f32; N], b: [f32; N]) -> [f32; N] {
        map2(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn sum(self, v: [f32; N]) -> f32 {
        let [a, b, c, d] = [v[0] + v[4], v[1] + v[5], v[2] + v[6], v[3] + v[7]];
        (a + c) + (b + d)
    }
    #[inline(always)]
    fn sum4(self, v: [[f32; N]; 4]) -> [f32; 4] {
        [self.sum(v[0]), self.sum(v[1]), self.sum(v[2]), self.sum(v[3])]
    }
    #[inline(always)]
    fn max_lane(self, value: [f32; N]) -> f32 {
        value.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }

    #[inline(always)]
    fn bits(self, value: [f32; N]) -> [i32; N] {
        map(value, |x| x.to_bits() as i32)
    }
    #[inline(always)]
    fn with_bits(self, bits: [i32; N]) -> [f32; N] {
        map(bits, |x| f32::from_bits(x as u32))
    }
    #[inline(always)]
    fn splat_int(self, value: i32) -> [i32; N] {
        [value; N]
    }
    #[inline(always)]
    fn add_int(self, a: [i32; N], b: [i32; N]) -> [i32; N] {
        map2(a, b, i32::wrapping_add)
    }
    #[inline(always)]
    fn sub_int(self, a: [i32; N], b: [i32; N]) -> [i32; N] {
        map2(a, b, i32::wrapping_sub)
    }
    #[inline(always)]
    fn shl_int<const S: u32>(self, a: [i32; N]) -> [i32; N] {
        map(a, |x| x << S)
    }
    #[inline(always)]
    fn shr_int<const S: u32>(self, a: [i32; N]) -> [i32; N] {
        map(a, |x| x >> S)
    }

    #[inline(always)]
    fn and_int(self, a: [i32; N], b: [i32; N]) -> [i32; N] {
        map2(a, b, |a, b| a & b)
    }
    #[inline(always)]
    fn or_int(self, a: [i32; N], b: [i32; N]) -> [i32; N] {
        map2(a, b, |a, b| a | b)
    }
    #[inline(always)]
    fn shr_int_by(self, a: [i32; N], n: u32) -> [i32; N] {
        map(a, |a| a >> (n & 31))
    }
    #[inline(always)]
    fn shr_lanes(self, bits: u32, first: u32) -> [i32; N] {
        std::array::from_fn(|i| (bits >> ((first + i as u32) & 31)) as i32)
    }
    #[inline(always)]
    fn int_to_f32(self, a: [i32; N]) -> [f32; N] {
        map(a, |a| a as f32)
    }
    #[inline(always)]
    fn load_bytes(self, from: &[u8]) -> [i32; N] {
        let from: [u8; N] = from[..N].try_into().expect("N bytes");
        from.map(i32::from)
    }

    #[inline(always)]
    fn widen_half(self, bits: u16) -> f32 {
        widen_f16(bits)
    }

    #[inline(always)]
    fn prefetch(self, _from: *const u8) {}
    #[inline(always)]
    unsafe fn load_ptr(self, from: *const f32) -> [f32; N] {
        // SAFETY: the caller vouches for N values.
        unsafe { from.cast::<[f32; N]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn load_ptr_part(self, from: *const f32, n: usize) -> [f32; N] {
        let mut out = [0.0; N];
        for (i, out) in out.iter_mut().enumerate().take(n) {
            // SAFETY: i < n, and the caller vouches for n values.
            *out = unsafe { from.add(i).read_unaligned() };
        }
        out
    }
    #[inline(always)]
    unsafe fn load_f16(self, from: *const u8) -> [f32; N] {
        // SAFETY: as the caller vouches.
        unsafe { halves(from, N, widen_f16) }
    }
    #[inline(always)]
    unsafe fn load_f16_part(self, from: *const u8, n: usize) -> [f32; N] {
        // SAFETY: as the caller vouches.
        unsafe { halves(from, n, widen_f16) }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, from: *const u8) -> [f32; N] {
        // SAFETY: as the caller vouches.
        unsafe { halves(from, N, widen_bf16) }
    }
    #[inline(always)]
    unsafe fn load_bf16_part(self, from: *const u8, n: usize) -> [f32; N] {
        // SAFETY: as the caller vouches.
        unsafe { halves(from, n, widen_bf16) }
    }
    #[inline(always)]
    unsafe fn load_i8(self, from: *const u8) -> [f32; N] {
        // SAFETY: the caller vouches for N bytes.
        map(unsafe { from.cast::<[i8; N]>().read_unaligned() }, f32::from)
    }
    #[inline(always)]
    unsafe fn splat_f16(self, from: *const u8) -> [f32; N] {
        // SAFETY: the caller vouches for one value.
        [unsafe { halves(from, 1, widen_f16) }[0]; N]
    }
    #[inline(always)]
    unsafe fn store_ptr(self, value: [f32; N], to: *mut f32) {
        // SAFETY: the caller vouches for N values.
        unsafe { to.cast::<[f32; N]>().write_unaligned(value) }
    }
}
