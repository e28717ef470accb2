//! How long a model file takes to open, parse and load, whatever its architecture:
//! `cargo run --release -p weight-loader --example load_time -- FILE.gguf`.
//!
//! Then it reads one byte of every page, to show what is left for the first token to pay.

use std::error::Error;
use std::path::Path;
use std::time::Instant;

use gguf_parser::TensorType;
use weight_loader::{ModelFile, TensorSpec, load};

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args().nth(1).ok_or("usage: load_time FILE.gguf")?;
    let start = Instant::now();
    let file = ModelFile::open(Path::new(&path))?;
    let opened = start.elapsed();
    let gguf = file.gguf()?;
    let parsed = start.elapsed() - opened;
    let spec = |tensor: &gguf_parser::TensorInfo<'_>| TensorSpec {
        name: tensor.name.to_owned(),
        shape: tensor.shape.to_vec(),
        types: TensorType::ALL,
        optional: false,
    };
    let specs: Vec<TensorSpec> = gguf.tensors.iter().map(spec).collect();
    let mut n_events = 0;
    let start = Instant::now();
    let weights = load(&file, &gguf, &specs, &mut |_| n_events += 1)?;
    let loaded = start.elapsed();

    let start = Instant::now();
    let pages = weights.iter().flat_map(|tensor| tensor.bytes().iter().step_by(4096));
    let sum: u64 = pages.map(|&byte| u64::from(byte)).sum();
    let touched = start.elapsed();
    println!("opened {opened:.1?}, parsed {parsed:.1?}, loaded {loaded:.1?} ({n_events} events)");
    println!(
        "{} tensors, {} bytes; one byte a page {touched:.1?} (sum {sum})",
        weights.iter().len(),
        weights.n_bytes()
    );
    Ok(())
}
