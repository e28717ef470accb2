//! Which instructions the processor has, asked once at run time.

use crate::simd::{Scalar, Simd};
#[cfg(target_arch = "x86_64")]
use crate::simd::{avx2::Avx2, avx512::Avx512};

/// An instruction set that the kernels are compiled for.
///
/// Results are bit-identical for one instruction set on every machine; between instruction sets they differ in the last
/// bits, because the width of a vector decides the order in which a sum is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Isa {
    /// Portable code, eight lanes wide, which compilers turn into whatever the target has as a baseline. Everywhere.
    Scalar,
    /// Eight lanes: AVX2, FMA and F16C. Most x86-64 processors since 2013.
    Avx2,
    /// Sixteen lanes: AVX-512 F, BW, DQ and VL. Intel servers since 2017, AMD since Zen 4.
    Avx512,
}

impl Isa {
    /// The widest instruction set that this processor and operating system support.
    pub fn detect() -> Isa {
        Isa::available().pop().unwrap_or(Isa::Scalar)
    }

    /// Every instruction set usable here, narrowest first; [`Isa::Scalar`] always is.
    pub fn available() -> Vec<Isa> {
        [Isa::Scalar, Isa::Avx2, Isa::Avx512].into_iter().filter(|isa| isa.is_available()).collect()
    }

    /// Whether this processor and operating system support it. The answer is cached by the standard library.
    pub fn is_available(self) -> bool {
        match self {
            Isa::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => Avx2::detect().is_some(),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => Avx512::detect().is_some(),
            #[cfg(not(target_arch = "x86_64"))]
            Isa::Avx2 | Isa::Avx512 => false,
        }
    }

    /// A short name for people and logs.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
        }
    }

    /// Runs `kernel`, compiled for this instruction set.
    ///
    /// # Panics
    /// When the processor lacks it ([`Isa::is_available`]).
    #[inline]
    pub fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            Isa::Scalar => kernel.run(Scalar),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => Avx2::detect().expect("this processor lacks AVX2, FMA or F16C").run(kernel),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => Avx512::detect().expect("this processor lacks AVX-512 F, BW, DQ or VL").run(kernel),
            #[cfg(not(target_arch = "x86_64"))]
            Isa::Avx2 | Isa::Avx512 => panic!("{} exists on x86-64 only", self.name()),
        }
    }
}

/// A computation written once over [`Simd`] and compiled for each instruction set by [`Isa::run`].
///
/// Implementations mark `run`, and all that it calls with a [`Simd`], `#[inline(always)]`: only what is inlined into the
/// function that enables an instruction set is compiled for it.
pub trait Kernel {
    /// What the computation returns.
    type Output;
    /// The computation.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}
