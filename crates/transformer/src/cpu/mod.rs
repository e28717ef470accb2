//! The CPU executor: kernels on a worker pool.

pub mod attention;
pub mod matmul;
pub mod ops;
pub mod pool;
