//! How fast a model file streams through slots on this machine: `read_speed FILE [THREADS] [SLOT_MIB]`.
//!
//! The sink throws everything away, so this is the ceiling for loading into a GPU's memory. The first pass warms the page
//! cache.

use std::convert::Infallible;
use std::path::Path;
use std::time::Instant;

use weight_loader::{ModelFile, Piece, SlotSink, pieces, stream};

struct Discards(Vec<Vec<u8>>);

impl SlotSink<Vec<u8>> for Discards {
    type Error = Infallible;

    fn filled(&mut self, slot: Vec<u8>, _piece: Piece<'_>) -> Result<(), Infallible> {
        self.0.push(slot);
        Ok(())
    }

    fn next_free(&mut self) -> Result<Vec<u8>, Infallible> {
        Ok(self.0.remove(0))
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let path = args.next().ok_or("usage: read_speed FILE [THREADS] [SLOT_MIB]")?;
    let n_threads: usize = args.next().map_or(Ok(8), |n| n.parse())?;
    let slot_bytes: usize = args.next().map_or(Ok(32), |n| n.parse())? << 20;
    let file = ModelFile::open(Path::new(&path))?;
    let gguf = file.gguf()?;
    let pieces = pieces(&gguf, slot_bytes);
    let n_bytes: u64 = gguf.tensors.iter().map(|tensor| tensor.n_bytes).sum();
    let mut slots: Vec<Vec<u8>> = (0..n_threads + 2).map(|_| vec![1; slot_bytes]).collect();
    for pass in 0..6 {
        let began = Instant::now();
        slots = stream(&file, &pieces, slots, n_threads, &mut Discards(Vec::new()))?;
        let seconds = began.elapsed().as_secs_f64();
        println!("pass {pass}: {n_bytes} bytes in {seconds:.3} s, {:.1} GB/s", n_bytes as f64 / seconds / 1e9);
    }
    Ok(())
}
