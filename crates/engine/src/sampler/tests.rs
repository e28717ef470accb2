//! The sampler against its definition, written the slow way.

use super::*;

#[test]
fn greedy_takes_the_lowest_id_of_equals() {
    let mut sampler = Sampler::new(5);
    let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
    assert_eq!(sampler.choose(&[1.0, 3.0, 2.0, 3.0, -0.5], &greedy, &[], 0, 0), Ok(1));
}
