//! A window on the values between the operations, for those who compare them with a reference.

/// A place in the forward pass. Shapes are `[n_tokens, …]`, row-major, unless said otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Step {
    /// Rows of the token embedding. `[.., d_model]`
    Embeddings,
    /// The residual stream after the attention norm of a layer. `[.., d_model]`
    AttnNorm,
    /// Queries, bias added. `[.., n_heads, d_head]`
    Q,
    /// Keys, bias added. `[.., n_kv_heads, d_head]`
    K,
    /// Values, bias added. `[.., n_kv_heads, d_head]`
    V,
    /// Queries after RoPE. `[.., n_heads, d_head]`
    QRope,
    /// Keys after RoPE. `[.., n_kv_heads, d_head]`
    KRope,
    /// Weighted values of every head. `[.., n_heads, d_head]`
    Attn,
    /// What attention adds to the residual stream. `[.., d_model]`
    AttnOut,
    /// The residual stream after the feed-forward norm. `[.., d_model]`
    FfnNorm,
    /// `silu(gate) * up`. `[.., d_ff]`
    FfnAct,
    /// What the feed-forward adds to the residual stream. `[.., d_model]`
    Ffn,
    /// The residual stream after a layer. `[.., d_model]`
    Out,
    /// The residual stream after the last norm, sampled rows only. `[n_samples, d_model]`
    FinalNorm,
}

/// Sees a step's values as they are computed.
pub trait Probe {
    /// `layer` is 0 for what belongs to no layer.
    fn see(&mut self, step: Step, layer: usize, values: &[f32]);
}

/// Looks away.
impl Probe for () {
    fn see(&mut self, _: Step, _: usize, _: &[f32]) {}
}

impl<P: Probe + ?Sized> Probe for &mut P {
    fn see(&mut self, step: Step, layer: usize, values: &[f32]) {
        (**self).see(step, layer, values);
    }
}
