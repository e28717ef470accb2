//! Measures the matrix products beside a plain read of the same bytes:
//! `cargo run --release -p transformer --example matmul [n_threads [format]]`.
//!
//! Weights have the shapes of one layer of Qwen2.5-0.5B, thirty layers of them, so that they come from memory and not from
//! a cache. GB/s count bytes of weights, GFLOP/s two operations per weight and token. Every figure is the best of some
//! runs: the machine may be doing other things.

use quant::{Format, Isa};
use std::hint::black_box;
use std::time::Instant;
use transformer::cpu::matmul::{MatmulScratch, Matrix, Product, matmul};
use transformer::cpu::pool::{Pool, share};

const D_MODEL: usize = 896;
const D_FF: usize = 4864;
/// (rows, columns): q, k and v together, attention output, gate and up together, down.
const SHAPES: [(usize, usize); 4] = [(1152, D_MODEL), (D_MODEL, D_MODEL), (2 * D_FF, D_MODEL), (D_MODEL, D_FF)];
const N_LAYERS: usize = 30;
const N_RUNS: usize = 7;

fn best(mut run: impl FnMut()) -> f64 {
    let time = |_| {
        let start = Instant::now();
        run();
        start.elapsed().as_secs_f64()
    };
    (0..N_RUNS).map(time).fold(f64::INFINITY, f64::min)
}

/// Reads every byte, on all threads.
fn read(pool: &Pool, isa: Isa, bytes: &[u8]) {
    pool.run(|thread_idx, n_threads| {
        black_box(quant::checksum(isa, &bytes[share(bytes.len(), 4096, thread_idx, n_threads)]));
    });
}

fn main() {
    let default = std::thread::available_parallelism().map_or(1, usize::from);
    let n_threads = std::env::args().nth(1).and_then(|arg| arg.parse().ok()).unwrap_or(default);
    let pool = Pool::new(n_threads).expect("threads");
    let mut scratch = MatmulScratch::new(n_threads, 0);
    let fork_join = best(|| (0..10_000).for_each(|_| pool.run(|_, _| {}))) / 10_000.0;
    println!("{n_threads} threads, fork and join {:.2} us", fork_join * 1e6);
    println!("{:>6} {:>7} {:>9} {:>9} {:>9}", "format", "isa", "tokens", "GB/s", "GFLOP/s");

    let formats = std::env::args().nth(2).map(|name| Format::from_name(&name).expect("a format"));
    for format in formats.map_or(vec![Format::F16, Format::Q8_0], |format| vec![format]) {
        // Whole blocks: 896 is 3.5 of 256.
        let shapes = SHAPES.map(|(rows, cols)| (rows, cols.next_multiple_of(format.block_len())));
        let n_weights: usize = shapes.iter().map(|(rows, cols)| rows * cols).sum::<usize>() * N_LAYERS;
        let pattern: Vec<f32> = (0..256 * 127).map(|i| ((i * 7919) % 2003) as f32 / 2003.0 - 0.5).collect();
        let mut block = vec![0x2E; format.row_bytes(pattern.len())]; // 0.097, where it is read as half precision
        if format.can_quantize() {
            quant::quantize(format, &pattern, &mut block);
        }
        let mut bytes = vec![0; format.row_bytes(n_weights)];
        bytes.chunks_mut(block.len()).for_each(|to| to.copy_from_slice(&block[..to.len()]));
        let n_bytes = bytes.len() as f64;
        let seconds = best(|| read(&pool, Isa::detect(), &bytes));
        println!("{:>6} {:>7} {:>9} {:9.1}", format.name(), "-", "read", n_bytes / seconds / 1e9);
        for isa in Isa::available().into_iter().rev().filter(|isa| *isa != Isa::Scalar) {
            for n_tokens in [1, 2, 4, 8, 32, 128, 512] {
                let mut x = quant::Aligned::zeros(n_tokens * D_FF);
                x.fill(0.01);
                let mut out = vec![0.0; n_tokens * 2 * D_FF];
                let n_layers = if n_tokens > 8 { 4 } else { N_LAYERS };
                let seconds = best(|| {
                    let mut rest = &bytes[..];
                    for _ in 0..n_layers {
                        for (n_rows, n_cols) in shapes {
                            let (weight, tail) = rest.split_at(n_rows * format.row_bytes(n_cols));
                            rest = tail;
                            let weight = Matrix::new(format, n_rows, n_cols, weight);
                            let out = &mut out[..n_tokens * n_rows];
                            let product = Product { weight, bias: None, out };
                            matmul(&pool, isa, &x[..n_tokens * n_cols], n_tokens, &mut [product], &mut scratch);
                        }
                    }
                });
                let share = n_layers as f64 / N_LAYERS as f64;
                let (gb, flop) = (n_bytes * share / 1e9, 2.0 * n_weights as f64 * share * n_tokens as f64);
                let (gb_s, gflop_s) = (gb / seconds, flop / seconds / 1e9);
                println!("{:>6} {:>7} {n_tokens:>9} {gb_s:9.1} {gflop_s:9.1}", format.name(), isa.name());
            }
        }
    }
}
