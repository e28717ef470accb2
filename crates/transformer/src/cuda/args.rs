//! Arguments of kernels, as more than one call needs them.

use cuda_sys::{DeviceBuffer, sys};
use half::f16;

use super::arena::MatrixAt;
use super::buffers::{KvPool, vector};
use super::model::{Layer, Model, Norm};
use super::tap::Tap;
use crate::ModelSpec;

/// Calls a kernel's launcher and turns its status into a `Result`.
macro_rules! launch {
    ($stream:expr, $op:ident, $args:expr) => {{
        let args = $args;
        // SAFETY: every pointer comes from a buffer of `Forward`, which holds what the largest step needs (`Sizes`,
        // `Layout`); the step was checked against those limits; and no buffer is freed before the stream's work is done.
        let status = unsafe { sys::$op(&args, $stream.raw()) };
        $stream.launched(stringify!($op), status)?
    }};
}
pub(super) use launch;

/// The arguments of a generated rows' product: everything but where it goes.
pub(super) fn matmul_args(
    matrix: &MatrixAt,
    x: &DeviceBuffer<f16>,
    x_pitch: usize,
    x_scale: f32,
    n: usize,
    arena: &DeviceBuffer<u8>,
) -> sys::orcd_decode_matmul_args {
    let mut args = sys::orcd_decode_matmul_args::default();
    args.w[0] = matrix.raw(arena);
    args.x = x.as_ptr();
    args.x_pitch = x_pitch as u32;
    args.x_unscale = 1.0 / x_scale;
    args.n_tokens = n as u32;
    args.n_splits = 1;
    args.output = sys::ORCD_DECODE_STORE;
    args
}

/// A norm that a product computes itself: of the first residual plus `n_partials` partials, left in the second.
pub(super) fn fused_norm(
    spec: &ModelSpec,
    model: &Model,
    norm: Norm,
    (residual, residual_out): (*const f32, *mut f32),
    (partials, n_partials): (*const f32, usize),
) -> sys::orcd_decode_norm {
    sys::orcd_decode_norm {
        residual,
        partials,
        n_partials: n_partials as u32,
        residual_out,
        weight: vector(model, norm.weight),
        eps: spec.rms_eps,
        scale: norm.scale,
        ..Default::default()
    }
}

/// Where a kernel leaves what it otherwise only hands on: null, unless somebody watches.
pub(super) fn shown_to(tap: &mut Option<Tap<'_>>) -> *mut f32 {
    tap.as_mut().map_or(std::ptr::null_mut(), Tap::values)
}

/// Pointers to the biases of q, k and v; null without.
pub(super) fn qkv_bias(spec: &ModelSpec, model: &Model, layer: &Layer) -> [*const f32; 3] {
    let Some(start) = layer.qkv_bias else { return [std::ptr::null(); 3] };
    [0, spec.d_q(), spec.d_q() + spec.d_kv()].map(|offset| vector(model, start + offset))
}

/// Where a layer's keys and values begin.
pub(super) fn layer_pools(kv: &mut KvPool, layer: usize) -> (*mut f16, *mut f16) {
    let range = layer * kv.layer_len..(layer + 1) * kv.layer_len;
    (kv.k.slice_mut(range.clone()).as_mut_ptr(), kv.v.slice_mut(range).as_mut_ptr())
}
