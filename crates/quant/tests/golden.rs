//! Dequantization has the bits of another implementation: the Python package `gguf`, by `golden/make_blocks.py`.

use quant::{Format, Isa, dequantize, dot};

/// A format's blocks and their values.
fn golden(format: Format) -> (Vec<u8>, Vec<f32>) {
    let path = format!("{}/golden/data/{}.bin", env!("CARGO_MANIFEST_DIR"), format.name());
    let bytes = std::fs::read(&path).unwrap_or_else(|why| panic!("{path}: {why}"));
    let n_blocks = bytes.len() / (format.block_bytes() + format.block_len() * size_of::<f32>());
    assert!(n_blocks >= 8, "{path}: {n_blocks} blocks");
    let (blocks, values) = bytes.split_at(n_blocks * format.block_bytes());
    assert_eq!(values.len(), n_blocks * format.block_len() * size_of::<f32>(), "{path}");
    (blocks.to_vec(), values.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
}

#[test]
fn every_value_has_the_bits_that_another_implementation_gives_it() {
    for &format in Format::ALL {
        let (blocks, expected) = golden(format);
        let mut got = vec![f32::NAN; expected.len()];
        dequantize(format, &blocks, &mut got);
        for (i, (got, expected)) in got.iter().zip(&expected).enumerate() {
            assert_eq!(got.to_bits(), expected.to_bits(), "{format:?} value {i}: {got} is not {expected}");
        }
    }
}

/// A dot product with a one among zeros is the value at that place: plus zeros, so the sign of a zero is not seen.
#[test]
fn every_instruction_set_sees_the_same_values() {
    for &format in Format::ALL {
        let (blocks, expected) = golden(format);
        let values = expected.chunks_exact(format.block_len());
        for (i, (block, values)) in blocks.chunks_exact(format.block_bytes()).zip(values).enumerate() {
            if values.iter().any(|value| value.is_infinite()) {
                continue; // an infinity times zero is not zero
            }
            for isa in Isa::available() {
                let mut x = vec![0.0; values.len()];
                for at in 0..x.len() {
                    x[at] = 1.0;
                    let got = dot(isa, format, block, &x);
                    x[at] = 0.0;
                    assert!(got == values[at], "{format:?} {isa:?} block {i} value {at}: {got} is not {}", values[at]);
                }
            }
        }
    }
}
