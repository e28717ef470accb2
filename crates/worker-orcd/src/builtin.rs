//! The haiku model, in the binary: what is served when no model is named.

/// The file's bytes.
pub(crate) fn bytes() -> &'static [u8] {
    &MODEL.bytes
}

/// Puts `bytes` at a multiple of 64, as a mapped file would be, so that its tensors are aligned as the file says.
#[repr(C, align(64))]
struct Aligned<T: ?Sized> {
    bytes: T,
}

static MODEL: &Aligned<[u8]> = &Aligned { bytes: *include_bytes!("../../../models/haiku/haiku-qwen2-5.8m-f16.gguf") };
