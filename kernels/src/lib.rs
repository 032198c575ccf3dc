//! CPU kernels: the arithmetic of the engines.
//!
//! One rule makes results reproducible. Every output element is one chain of fused multiply-adds in a fixed
//! order (the inner dimension, ascending). Every sum that is not a chain runs over sixteen lanes (element
//! index modulo sixteen), which are then added as a fixed tree. Vector width, blocking, batch and threads
//! decide only *which* elements are computed side by side, never the order inside one. So the same input
//! gives the same bits on AVX-512, AVX2 and plain code, alone or in a batch, on one thread or many.
//!
//! The meaning of the numbers is not defined here.

pub mod attention;
pub mod element;
pub mod elementwise;
pub mod int8;
pub mod math;
pub mod matmul;
mod micro;
mod pack;
pub mod pool;
pub mod sampling;

pub use element::ElementType;
pub use pool::ComputePool;

/// Lanes of a sum that is not a chain; also the width of the widest vector used.
pub const LANES: usize = 16;

/// Instruction set to use. A value exists only for a set that this machine supports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Isa(Level);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Portable,
}

impl Isa {
    /// Returns the fastest instruction set of this machine.
    #[must_use]
    pub fn best() -> Self {
        Self::available()[0]
    }

    /// Returns all instruction sets of this machine, fastest first; plain code is always included.
    #[must_use]
    pub fn available() -> Vec<Self> {
        let mut found = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            let has_fma = std::arch::is_x86_feature_detected!("fma");
            let has_avx2 = std::arch::is_x86_feature_detected!("avx2");
            if std::arch::is_x86_feature_detected!("avx512f") && has_avx2 && has_fma {
                found.push(Self(Level::Avx512));
            }
            if has_avx2 && has_fma {
                found.push(Self(Level::Avx2));
            }
        }
        found.push(Self(Level::Portable));
        found
    }

    /// Returns a human-readable name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => "AVX-512",
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => "AVX2",
            Level::Portable => "portable",
        }
    }
}

/// Compiles a function body three times, once for each instruction set, and dispatches at run time. The body
/// is ordinary Rust; fixed-width inner loops become vectors.
macro_rules! kernel {
    ($(#[$meta:meta])* $visibility:vis fn $name:ident($($arg:ident: $type:ty),* $(,)?) $body:block) => {
        $(#[$meta])*
        $visibility fn $name(isa: $crate::Isa, $($arg: $type),*) {
            #[inline(always)]
            fn body($($arg: $type),*) $body
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx2,fma")]
            fn avx512($($arg: $type),*) { body($($arg),*) }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2($($arg: $type),*) { body($($arg),*) }
            match isa.0 {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: an `Isa` of this level exists only where the features were detected.
                $crate::Level::Avx512 => unsafe { avx512($($arg),*) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: as above.
                $crate::Level::Avx2 => unsafe { avx2($($arg),*) },
                $crate::Level::Portable => body($($arg),*),
            }
        }
    };
}
pub(crate) use kernel;
