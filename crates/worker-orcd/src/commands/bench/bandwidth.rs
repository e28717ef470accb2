//! The ceiling: how fast this machine's threads read the weights that a decoded token needs.

use std::sync::Barrier;
use std::time::{Duration, Instant};

use weight_loader::{Tensor, Weights};

use super::measure::Spread;

/// One measurement reads the weights as often as takes at least this long: starting threads must not count, and a small
/// model is read in less than a millisecond.
const LEAST_TIME: Duration = Duration::from_millis(50);

/// The weights that decoding one token reads: all, but of a token embedding that is not the output matrix too only a
/// row, which is nothing.
pub(crate) fn decoded_tensors(weights: &Weights) -> Vec<Tensor> {
    let is_tied = weights.tensor("output.weight").is_none();
    weights.iter().filter(|tensor| is_tied || &*tensor.name != "token_embd.weight").cloned().collect()
}

/// Bytes per second at which `n_threads` threads read `tensors`, `repetitions` times and once before.
pub(crate) fn measure(tensors: &[Tensor], n_threads: usize, repetitions: usize) -> Spread {
    let slices: Vec<&[u8]> = tensors.iter().map(|t| t.bytes()).collect();
    let n_bytes: usize = slices.iter().map(|s| s.len()).sum();
    let parts = parts(&slices, n_bytes, n_threads);
    let once = read(&parts, 1).max(Duration::from_nanos(1));
    let n_passes = (LEAST_TIME.as_secs_f64() / once.as_secs_f64()).ceil().max(1.0) as usize;
    let rates = (0..repetitions).map(|_| (n_bytes * n_passes) as f64 / read(&parts, n_passes).as_secs_f64());
    Spread::of(rates.collect())
}

/// Equal parts, one a thread, each of contiguous pieces.
fn parts<'b>(slices: &[&'b [u8]], n_bytes: usize, n_threads: usize) -> Vec<Vec<&'b [u8]>> {
    let share = n_bytes.div_ceil(n_threads).max(1);
    let mut parts = vec![Vec::new()];
    let mut room = share;
    for mut slice in slices.iter().copied() {
        while !slice.is_empty() {
            if room == 0 {
                parts.push(Vec::new());
                room = share;
            }
            let (now, later) = slice.split_at(slice.len().min(room));
            parts.last_mut().expect("there is always one").push(now);
            room -= now.len();
            slice = later;
        }
    }
    parts
}

/// The time from the moment that all threads are there until all have read their part `n_passes` times.
fn read(parts: &[Vec<&[u8]>], n_passes: usize) -> Duration {
    let barrier = Barrier::new(parts.len() + 1);
    let isa = quant::Isa::detect();
    std::thread::scope(|scope| {
        let threads: Vec<_> = parts
            .iter()
            .map(|part| {
                scope.spawn(|| {
                    barrier.wait();
                    (0..n_passes).fold(0, |sum, _| {
                        part.iter().fold(sum, |sum, slice| sum ^ std::hint::black_box(quant::checksum(isa, slice)))
                    })
                })
            })
            .collect();
        barrier.wait();
        let began = Instant::now();
        for thread in threads {
            std::hint::black_box(thread.join().expect("reading does not panic"));
        }
        began.elapsed()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_in_exactly_one_part() {
        let bytes: Vec<u8> = (0..=255).collect();
        let slices = [&bytes[..100], &bytes[100..100], &bytes[100..101], &bytes[101..]];
        for n_threads in [1, 2, 3, 7, 300] {
            let parts = parts(&slices, bytes.len(), n_threads);
            assert!(parts.len() <= n_threads, "{n_threads}");
            assert_eq!(parts.concat().concat(), bytes);
        }
    }
}
