//! Blocks taken apart have the values of the blocks.

mod blocks;

use proptest::prelude::*;
use quant::planes::{Layout, N_PLANES, pack, unpack};
use quant::{Format, dequantize};

fn formats() -> Vec<Format> {
    Format::ALL.iter().copied().filter(|&format| Layout::of(format).is_some()).collect()
}

/// Planes of the bytes.
fn packed(format: Format, bytes: &[u8]) -> [Vec<u8>; N_PLANES] {
    let n = bytes.len() / format.block_bytes() * format.block_len();
    let mut planes = Layout::of(format).unwrap().n_bytes(n).map(|n_bytes| vec![0xEE; n_bytes]);
    pack(format, bytes, planes.each_mut().map(Vec::as_mut_slice));
    planes
}

fn check(format: Format, bytes: &[u8]) {
    let n = bytes.len() / format.block_bytes() * format.block_len();
    let (mut want, mut got) = (vec![0.0; n], vec![0.0; n]);
    dequantize(format, bytes, &mut want);
    unpack(format, packed(format, bytes).each_ref().map(Vec::as_slice), &mut got);
    for (i, (got, want)) in got.iter().zip(&want).enumerate() {
        let same = got.to_bits() == want.to_bits() || (got.is_nan() && want.is_nan());
        assert!(same, "{format:?}: element {i} is {got}, the block's {want}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whatever the bytes are: scales that are infinite or no numbers too.
    #[test]
    fn planes_of_any_bytes_have_the_values_of_the_blocks(
        format in prop::sample::select(formats()),
        n_blocks in 1usize..5,
        bytes in prop::collection::vec(any::<u8>(), 5 * 256),
    ) {
        check(format, &bytes[..n_blocks * format.block_bytes()]);
    }

    #[test]
    fn planes_of_blocks_with_plain_scales_have_their_values(format in prop::sample::select(formats()), seed: u64) {
        check(format, &blocks::blocks(format, 1024, seed));
    }

    /// A loader packs a matrix in pieces.
    #[test]
    fn blocks_packed_in_two_parts_are_those_packed_at_once(
        format in prop::sample::select(formats()),
        n_first in 1usize..4,
        seed: u64,
    ) {
        let bytes = blocks::blocks(format, 1024, seed);
        let (first, second) = bytes.split_at(n_first * format.block_bytes());
        let parts = packed(format, first).into_iter().zip(packed(format, second));
        let joined: Vec<Vec<u8>> = parts.map(|(first, second)| [first, second].concat()).collect();
        prop_assert_eq!(joined, packed(format, &bytes));
    }
}

#[test]
fn planes_take_what_the_file_takes_or_little_more() {
    for format in formats() {
        let n_bytes: usize = Layout::of(format).unwrap().n_bytes(1024).iter().sum();
        let in_file = format.row_bytes(1024);
        let most = match format {
            Format::Q4_K => 1.028,
            Format::Q5_K => 1.023,
            Format::Q3_K => 1.037,
            Format::IQ4_XS => 1.015,
            _ => 1.0,
        };
        assert!(n_bytes >= in_file && n_bytes as f64 <= most * in_file as f64, "{format:?}: {n_bytes} of {in_file}");
    }
}

#[test]
fn formats_without_blocks_have_no_planes() {
    assert_eq!([Format::F32, Format::F16, Format::BF16].map(Layout::of), [None; 3]);
}

#[test]
#[should_panic(expected = "bytes of planes")]
fn a_plane_that_is_too_short_is_refused() {
    pack(Format::Q4_0, &[0; 18], [&mut [0; 15], &mut [], &mut [0; 2], &mut []]);
}
