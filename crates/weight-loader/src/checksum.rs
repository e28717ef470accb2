//! Reading everything once, as fast as memory gives it.

/// The exclusive or of all 64-bit words of `bytes`, and of the single bytes at the end that make no word.
///
/// It reads every byte once and does next to nothing with it, so its speed is the memory's: the ceiling that a benchmark
/// holds decoding against. No protection against anything.
pub fn checksum(bytes: &[u8]) -> u64 {
    // Sixteen words at a time make independent streams, so that nothing waits for anything but memory.
    let mut sums = [0u64; 16];
    let chunks = bytes.chunks_exact(8 * sums.len());
    let (words, tail) = chunks.remainder().as_chunks::<8>();
    let words = words.iter().fold(0, |sum, word| sum ^ u64::from_ne_bytes(*word));
    let rest = tail.iter().fold(words, |sum, &byte| sum ^ u64::from(byte));
    for chunk in chunks {
        for (sum, word) in sums.iter_mut().zip(chunk.as_chunks::<8>().0) {
            *sum ^= u64::from_ne_bytes(*word);
        }
    }
    sums.iter().fold(rest, |sum, &word| sum ^ word)
}

#[cfg(test)]
mod tests {
    use super::checksum;

    #[test]
    fn every_byte_counts_once() {
        for n_bytes in [0, 1, 7, 8, 127, 128, 129, 3 * 128 + 13] {
            let mut bytes = vec![0u8; n_bytes];
            assert_eq!(checksum(&bytes), 0);
            for i in 0..n_bytes {
                bytes[i] = 1;
                assert_ne!(checksum(&bytes), 0, "byte {i} of {n_bytes}");
                bytes[i] = 0;
            }
        }
    }
}
