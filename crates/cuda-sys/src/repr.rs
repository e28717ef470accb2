//! Types whose bytes mean the same on both sides.

/// A type that lies in device memory as it lies in the host's.
///
/// # Safety
/// Plain data: no pointers or padding, every pattern of bits is a value (all zeros included), and alignment is at most
/// 16 bytes. Copying bytes to the device and back then gives the value again.
pub unsafe trait DeviceRepr: Copy + Send + Sync + 'static {
    /// Its name in messages.
    const NAME: &'static str;
}

macro_rules! plain {
    ($($type:ty => $name:literal),* $(,)?) => {
        $(
            // SAFETY: a number without padding; every pattern of bits is one.
            unsafe impl DeviceRepr for $type {
                const NAME: &'static str = $name;
            }
        )*
    };
}

plain! {
    u8 => "u8", i8 => "i8", u16 => "u16", i16 => "i16", u32 => "u32", i32 => "i32", u64 => "u64", i64 => "i64",
    f32 => "f32", f64 => "f64", half::f16 => "f16", half::bf16 => "bf16",
}
