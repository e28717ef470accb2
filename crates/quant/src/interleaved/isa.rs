//! Which instructions for products of small integers the processor has.

/// Instructions for products of interleaved weights. Results are the same bits with any of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IntegerIsa {
    /// AVX2. Most x86-64 processors since 2013.
    Avx2,
    /// AVX-512 VNNI. Intel servers since 2019, AMD since Zen 4.
    Vnni,
    /// AMX's tiles of bytes for sixteen tokens and more, VNNI for the others. Intel servers since 2023.
    Amx,
}

impl IntegerIsa {
    /// The best that this processor and operating system support; `None` where there is none.
    pub fn detect() -> Option<IntegerIsa> {
        IntegerIsa::available().pop()
    }

    /// All that are usable here, the best last.
    pub fn available() -> Vec<IntegerIsa> {
        [IntegerIsa::Avx2, IntegerIsa::Vnni, IntegerIsa::Amx].into_iter().filter(|isa| isa.is_available()).collect()
    }

    /// Whether this processor and operating system support it. The first question after [`IntegerIsa::Amx`] asks the system for
    /// leave to use tiles, for the whole process; the answer is kept.
    pub fn is_available(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return match self {
            IntegerIsa::Avx2 => crate::Isa::Avx2.is_available(),
            IntegerIsa::Vnni => crate::Isa::Avx512.is_available() && is_x86_feature_detected!("avx512vnni"),
            IntegerIsa::Amx => IntegerIsa::Vnni.is_available() && super::amx::is_available(),
        };
        #[cfg(not(target_arch = "x86_64"))]
        false
    }

    /// A short name for people and logs.
    pub fn name(self) -> &'static str {
        match self {
            IntegerIsa::Avx2 => "avx2 integers",
            IntegerIsa::Vnni => "vnni",
            IntegerIsa::Amx => "amx",
        }
    }
}
