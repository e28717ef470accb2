//! The hash of short byte strings and of integer pairs.
//!
//! Multiply-and-fold, as in wyhash, over a seed drawn once per process: a vocabulary file cannot be made so that its
//! tokens collide, and a look-up of a word of everyday length costs two multiplications.

use std::hash::{BuildHasher, RandomState};

/// Odd constants with evenly spread bits (the fractional digits of pi).
const PI: [u64; 3] = [0x243F_6A88_85A3_08D3, 0x1319_8A2E_0370_7345, 0xA409_3822_299F_31D1];

/// The process's secret.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seed(u64, u64);

impl Seed {
    /// A fresh secret.
    pub(crate) fn draw() -> Seed {
        let state = RandomState::new();
        Seed(state.hash_one(PI[0]), state.hash_one(PI[1]) | 1)
    }

    /// The hash of `bytes`.
    #[inline]
    pub(crate) fn of_bytes(self, bytes: &[u8]) -> u64 {
        let len = bytes.len();
        let mut state = self.0 ^ len as u64;
        let (a, b) = if len <= 16 {
            ends(bytes)
        } else {
            for block in bytes[..len - 1].as_chunks::<16>().0 {
                let (a, b) = halves(block);
                state = fold(a ^ self.1, b ^ state);
            }
            halves(bytes.last_chunk::<16>().expect("longer than 16"))
        };
        fold(fold(a ^ self.1, b ^ state), PI[2])
    }

    /// The hash of one number.
    #[inline]
    pub(crate) fn of_u64(self, number: u64) -> u64 {
        fold(fold(number ^ self.0, self.1), PI[2])
    }
}

/// Two words that hold every byte of a string of at most 16; together with its length they determine it.
#[inline]
fn ends(bytes: &[u8]) -> (u64, u64) {
    if let (Some(first), Some(last)) = (bytes.first_chunk::<8>(), bytes.last_chunk::<8>()) {
        (u64::from_le_bytes(*first), u64::from_le_bytes(*last))
    } else if let (Some(first), Some(last)) = (bytes.first_chunk::<4>(), bytes.last_chunk::<4>()) {
        (u64::from(u32::from_le_bytes(*first)), u64::from(u32::from_le_bytes(*last)))
    } else if let (Some(first), Some(last)) = (bytes.first(), bytes.last()) {
        (u64::from(*first) << 8 | u64::from(bytes[bytes.len() / 2]), u64::from(*last))
    } else {
        (0, 0)
    }
}

/// Whether two strings are equal: as `==`, without a call for short ones.
#[inline]
pub(crate) fn are_equal(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && if a.len() <= 16 { ends(a) == ends(b) } else { a == b }
}

#[inline]
fn halves(block: &[u8; 16]) -> (u64, u64) {
    let whole = u128::from_le_bytes(*block);
    (whole as u64, (whole >> 64) as u64)
}

#[inline]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn equal_bytes_hash_equal_and_others_differ(a: Vec<u8>, b: Vec<u8>) {
            let seed = Seed::draw();
            prop_assert_eq!(seed.of_bytes(&a) == seed.of_bytes(&b), a == b);
            prop_assert_eq!(are_equal(&a, &b), a == b);
            prop_assert!(are_equal(&a, &a.clone()));
        }

        #[test]
        fn one_changed_byte_changes_the_hash(mut a in prop::collection::vec(any::<u8>(), 1..80), at: prop::sample::Index, by in 1..=255u8) {
            let seed = Seed::draw();
            let before = seed.of_bytes(&a);
            let at = at.index(a.len());
            let b = a.clone();
            a[at] ^= by;
            prop_assert_ne!(before, seed.of_bytes(&a));
            prop_assert!(!are_equal(&a, &b));
        }
    }
}
