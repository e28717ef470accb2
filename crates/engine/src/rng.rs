//! A counter-based random generator: Philox4x32-10.
//!
//! There is no state to carry: the random number for a position is a pure function of `(seed, position)`. A request's
//! choices therefore cannot depend on what it is batched with, on how its prompt was cut into steps, or on whether some of
//! it came from the cache; and a request that repeats part of an earlier answer draws at each position what it drew then.
//!
//! # Source
//! Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC11. The test vectors are those of the
//! authors' Random123 library (`kat_vectors`).

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const KEY_STEPS: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const N_ROUNDS: usize = 10;

/// The Philox4x32-10 bijection of `counter` under `key`.
pub fn philox4x32(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..N_ROUNDS {
        let a = u64::from(MULTIPLIERS[0]) * u64::from(counter[0]);
        let b = u64::from(MULTIPLIERS[1]) * u64::from(counter[2]);
        counter = [(b >> 32) as u32 ^ counter[1] ^ key[0], b as u32, (a >> 32) as u32 ^ counter[3] ^ key[1], a as u32];
        key = [key[0].wrapping_add(KEY_STEPS[0]), key[1].wrapping_add(KEY_STEPS[1])];
    }
    counter
}

/// The uniform number in `[0, 1)` that belongs to `position` under `seed`; 53 random bits.
pub fn uniform(seed: u64, position: u64) -> f64 {
    let counter = [position as u32, (position >> 32) as u32, 0, 0];
    let [high, low, ..] = philox4x32(counter, [seed as u32, (seed >> 32) as u32]);
    let bits = (u64::from(high) << 32 | u64::from(low)) >> 11;
    bits as f64 * (1.0 / (1u64 << 53) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_the_published_vectors() {
        let check = |counter, key, expected| assert_eq!(philox4x32(counter, key), expected);
        check([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        check([!0; 4], [!0; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        check(
            [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
            [0xa409_3822, 0x299f_31d0],
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
        );
    }

    #[test]
    fn uniform_numbers_lie_in_the_unit_interval_and_fill_it_evenly() {
        let mut tenths = [0; 10];
        for position in 0..100_000 {
            let u = uniform(42, position);
            assert!((0.0..1.0).contains(&u));
            tenths[(u * 10.0) as usize] += 1;
        }
        // Binomial(100000, 0.1): standard deviation 95.
        assert!(tenths.iter().all(|&n: &i32| (n - 10_000).abs() < 500), "{tenths:?}");
    }

    #[test]
    fn neighbouring_seeds_and_positions_are_unrelated() {
        assert_ne!(uniform(1, 0), uniform(0, 1));
        assert_ne!(uniform(0, 0), uniform(1, 0));
        assert_ne!(uniform(0, 0), uniform(1 << 32, 0));
    }
}
