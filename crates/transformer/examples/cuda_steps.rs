//! How long a step of generated rows takes on a GPU, by rows, depth and switches: a developer's tool.
//!
//!     cargo run --release -p transformer --features cuda --example cuda_steps -- MODEL.gguf [ROWS,...] [DEPTH,...]
//!
//! Wall-clock time of a whole step, greedy sampling and the way back to the host included: the median of 200.

use std::error::Error;
use std::path::Path;
use std::time::Instant;

use transformer::cuda::{CudaExecutor, CudaOptions};
use transformer::{BLOCK_TOKENS, Batch, BlockId, Executor, ModelSpec, Role, SampleRequest, Sampling};
use weight_loader::ModelFile;

const N_STEPS: usize = 200;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let Some(model) = args.first() else { return Err("usage: cuda_steps MODEL.gguf [ROWS,...] [DEPTH,...]".into()) };
    let list = |i: usize, default: &str| -> Result<Vec<usize>, std::num::ParseIntError> {
        args.get(i).map_or(default, String::as_str).split(',').map(str::parse).collect()
    };
    let (rows, depths) = (list(1, "1,8,32,256")?, list(2, "0,1024,16384")?);
    let file = ModelFile::open(Path::new(model))?;
    let gguf = file.gguf()?;
    let spec = ModelSpec::from_gguf(&gguf)?;
    println!("graphs  dependent  rows   depth   step ms   tokens/s");
    for (graphs, dependent_launch) in [(true, true), (true, false), (false, false)] {
        for &n_rows in &rows {
            for &depth in &depths {
                // Every row reads the same blocks: what is there does not matter to time, as long as it is no NaN.
                let n_blocks = (depth + N_STEPS + 64).div_ceil(BLOCK_TOKENS);
                if n_rows * n_blocks > 256 * 128 || depth + N_STEPS + 64 > spec.n_ctx {
                    continue;
                }
                let options = CudaOptions {
                    n_ctx: Some(n_blocks * BLOCK_TOKENS),
                    max_seqs: n_rows,
                    max_batch_tokens: n_rows.max(16),
                    graphs,
                    dependent_launch,
                    ..CudaOptions::default()
                };
                let mut executor = CudaExecutor::load(spec.clone(), &file, &gguf, options, &mut |_, _| ())?;
                let ms = step_ms(&mut executor, n_rows, depth, n_blocks)?;
                let tokens_per_s = n_rows as f64 / ms * 1e3;
                println!("{graphs:6} {dependent_launch:10} {n_rows:5} {depth:7} {ms:9.4} {tokens_per_s:10.0}");
            }
        }
    }
    Ok(())
}

fn step_ms(executor: &mut CudaExecutor, n_rows: usize, depth: usize, n_blocks: usize) -> Result<f64, Box<dyn Error>> {
    let mut batch = Batch::default();
    let mut times = Vec::with_capacity(N_STEPS);
    let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
    for step in 0..N_STEPS + 20 {
        let position = depth + step;
        batch.clear();
        for row in 0..n_rows {
            let blocks: Vec<BlockId> =
                (0..=position / BLOCK_TOKENS).map(|b| BlockId((row * n_blocks + b) as u32)).collect();
            batch.push(Role::Generated, &[(step * 131 + row * 17) as u32 % 1000], position as u32, &blocks, true);
            batch.sample_with(&SampleRequest::new(&greedy, 0));
        }
        let began = Instant::now();
        executor.forward(&batch)?;
        if step >= 20 {
            times.push(began.elapsed().as_secs_f64() * 1e3);
        }
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}
