//! A tensor's blocks in one format to blocks in another, piece by piece, on all threads.

use quant::Format;
use rayon::prelude::*;

/// Elements that a thread converts at a time: its `f32` take 128 KiB and stay in the cache. A whole number of blocks of every
/// format.
const CHUNK: usize = 1 << 15;

/// Elements that are converted between two looks at the signals: the bytes in memory are at most four times that.
pub(crate) const PIECE: usize = 1 << 22;

/// The largest number in half precision, in which values and the scales of blocks may be stored.
const LARGEST_HALF: f32 = 65_504.0;

/// A value that the new format has no room for, or that is no number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Misfit {
    /// Which element, counted in the piece.
    pub(crate) element: usize,
    pub(crate) value: f32,
}

/// How a piece's bytes are to change.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Conversion {
    pub(crate) from: Format,
    pub(crate) to: Format,
}

impl Conversion {
    /// Converts whole blocks of both formats.
    ///
    /// # Errors
    /// One of the values that cannot be written.
    ///
    /// # Panics
    /// If the two do not have equally many elements.
    pub(crate) fn convert(self, from: &[u8], to: &mut [u8]) -> Result<(), Misfit> {
        let [from_bytes, to_bytes] = [self.from, self.to].map(|format| format.row_bytes(CHUNK));
        assert_eq!(from.len().div_ceil(from_bytes), to.len().div_ceil(to_bytes));
        to.par_chunks_mut(to_bytes).zip(from.par_chunks(from_bytes)).enumerate().try_for_each_init(
            || vec![0.0; CHUNK],
            |values, (chunk, (to, from))| {
                let values = &mut values[..from.len() / self.from.block_bytes() * self.from.block_len()];
                quant::dequantize(self.from, from, values);
                let at = |misfit: Misfit| Misfit { element: chunk * CHUNK + misfit.element, ..misfit };
                self.quantize(values, to).map_err(at)
            },
        )
    }

    fn quantize(self, values: &[f32], to: &mut [u8]) -> Result<(), Misfit> {
        let misfit = |element: usize| Misfit { element, value: values[element] };
        let largest = values.iter().fold(0f32, |most, x| most.max(x.abs()));
        if let Some(element) = values.iter().position(|x| !x.is_finite()) {
            return Err(misfit(element));
        }
        quant::quantize(self.to, values, to);
        if largest > LARGEST_HALF {
            let mut again = vec![0.0; values.len()];
            quant::dequantize(self.to, to, &mut again);
            if let Some(element) = again.iter().position(|x| !x.is_finite()) {
                return Err(misfit(element));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|x| x.to_le_bytes()).collect()
    }

    #[test]
    fn every_chunk_is_converted_in_its_place() {
        let values: Vec<f32> = (0..3 * CHUNK + 64).map(|i| (i % 1009) as f32 - 500.0).collect();
        for to in Format::ALL.iter().copied().filter(|format| format.can_quantize()) {
            let values = &values[..values.len() / to.block_len() * to.block_len()];
            let mut expected = vec![0; to.row_bytes(values.len())];
            quant::quantize(to, values, &mut expected);
            let mut got = vec![0; expected.len()];
            Conversion { from: Format::F32, to }.convert(&bytes(values), &mut got).unwrap();
            assert!(got == expected, "{to:?}");
        }
    }

    #[test]
    fn what_has_no_room_is_named() {
        let convert = |value: f32, to: Format| {
            let mut values = vec![0.5; CHUNK + 64];
            values[CHUNK + 40] = value;
            let mut out = vec![0; to.row_bytes(values.len())];
            Conversion { from: Format::F32, to }.convert(&bytes(&values), &mut out).map_err(|misfit| misfit.element)
        };
        assert_eq!(convert(f32::NAN, Format::Q8_0), Err(CHUNK + 40));
        assert_eq!(convert(f32::NEG_INFINITY, Format::F32), Err(CHUNK + 40));
        assert_eq!(convert(1e6, Format::F16), Err(CHUNK + 40));
        assert_eq!(convert(1e6, Format::BF16), Ok(()));
        assert_eq!(convert(1e6, Format::Q8_0), Ok(()));
        assert!(convert(1e20, Format::Q8_0).is_err());
    }
}
