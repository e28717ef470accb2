//! The sampler against its definition, written the slow way.

use proptest::prelude::*;

use super::*;

const PLAIN: Sampling = Sampling { temperature: 1.0, repetition_penalty: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0 };
const GREEDY: Sampling = Sampling { temperature: 0.0, ..PLAIN };

/// What the filters leave, most likely first: sorted, cut, cut and cut.
fn kept_the_slow_way(weights: &[f32], sampling: &Sampling) -> Vec<Candidate> {
    let mut kept: Vec<_> =
        weights.iter().enumerate().map(|(id, &probability)| Candidate { probability, id: id as TokenId }).collect();
    kept.sort_by(|a, b| b.probability.total_cmp(&a.probability).then(a.id.cmp(&b.id)));
    if sampling.top_k > 0 {
        kept.truncate(sampling.top_k as usize);
    }
    if sampling.top_p < 1.0 {
        let goal = f64::from(sampling.top_p) * kept.iter().map(|c| f64::from(c.probability)).sum::<f64>();
        let mut mass = 0.0;
        let n_below = kept.iter().take_while(|c| {
            let is_below = mass < goal;
            mass += f64::from(c.probability);
            is_below
        });
        let n = n_below.count().max(1);
        kept.truncate(n);
    }
    kept.retain(|c| c.probability >= sampling.min_p);
    kept
}

fn kept(sampler: &mut Sampler, logits: &[f32], sampling: &Sampling) -> Vec<Candidate> {
    let maximum = finite_maximum(logits).unwrap();
    probabilities(logits, maximum, sampling.temperature, &mut sampler.weights, &mut sampler.block_sums);
    sampler.keep_candidates(sampling);
    sampler.candidates.clone()
}

fn any_sampling() -> impl Strategy<Value = Sampling> {
    (
        0.1f32..2.0,
        prop_oneof![Just(0u32), 1u32..50, 1u32..5000],
        prop_oneof![Just(1.0f32), 0.0f32..1.0],
        prop_oneof![Just(0.0f32), 0.0f32..1.0],
    )
        .prop_map(|(temperature, top_k, top_p, min_p)| Sampling { temperature, top_k, top_p, min_p, ..PLAIN })
}

/// Rows with many ties (quarters), rows with none, rows with impossible tokens.
fn any_row() -> impl Strategy<Value = Vec<f32>> {
    prop_oneof![
        prop::collection::vec((-80i32..80).prop_map(|x| x as f32 * 0.25), 1..3000),
        prop::collection::vec(-30f32..30.0, 1..3000),
        prop::collection::vec(
            prop_oneof![4 => -5f32..5.0, 1 => Just(f32::NEG_INFINITY), 1 => Just(f32::NAN), 1 => Just(-1e30)],
            1..200
        )
        .prop_filter("a finite maximum", |row| finite_maximum(row).is_ok()),
    ]
}

proptest! {
    #[test]
    fn keeps_what_sorting_would_keep(row in any_row(), sampling in any_sampling()) {
        let mut sampler = Sampler::new(row.len());
        let got = kept(&mut sampler, &row, &sampling);
        let mut expected = kept_the_slow_way(&sampler.weights, &sampling);
        expected.sort_by_key(|c| c.id);
        // Sums in another order may differ in the last bit, and then by one token.
        let positive = |kept: &[Candidate]| kept.iter().filter(|c| c.probability > 0.0).map(|c| c.id).collect::<Vec<_>>();
        let (got, expected) = (positive(&got), positive(&expected));
        if got != expected {
            let (less, more) = if got.len() < expected.len() { (&got, &expected) } else { (&expected, &got) };
            let extra = more.iter().filter(|id| !less.contains(id)).collect::<Vec<_>>();
            let mass = |ids: &[TokenId]| ids.iter().map(|&id| f64::from(sampler.weights[id as usize])).sum::<f64>();
            let goal = f64::from(sampling.top_p) * if sampling.top_k == 0 { sampler.block_sums.iter().sum::<f64>() } else { mass(more) };
            prop_assert!(extra.len() == 1 && sampling.top_p < 1.0, "{got:?} {expected:?}");
            if sampling.top_k == 0 {
                prop_assert!((mass(less) / goal - 1.0).abs() < 1e-5, "{} {goal}", mass(less));
            }
        }
    }

    #[test]
    fn draws_only_what_is_kept_and_depends_on_nothing_else(row in any_row(), sampling in any_sampling(), seed: u64, position: u64) {
        let mut sampler = Sampler::new(row.len());
        let chosen = sampler.choose(&row, &sampling, &[], seed, position).unwrap();
        let kept = kept(&mut sampler, &row, &sampling);
        let weight = sampler.weights[chosen as usize];
        prop_assert!(weight > 0.0);
        prop_assert!(kept.iter().any(|c| c.id == chosen));
        // A used sampler chooses as a new one does.
        prop_assert_eq!(sampler.choose(&row, &sampling, &[], seed, position).unwrap(), chosen);
    }

    #[test]
    fn greedy_is_the_first_of_the_greatest(row in any_row()) {
        let mut sampler = Sampler::new(row.len());
        let maximum = finite_maximum(&row).unwrap();
        let first = row.iter().position(|&x| x == maximum).unwrap() as TokenId;
        prop_assert_eq!(sampler.choose(&row, &GREEDY, &[], 3, 4), Ok(first));
        prop_assert_eq!(sampler.choose(&row, &Sampling { top_k: 1, ..PLAIN }, &[], 3, 4), Ok(first));
        prop_assert_eq!(sampler.choose(&row, &Sampling { top_p: 0.0, ..PLAIN }, &[], 3, 4), Ok(first));
    }

    #[test]
    fn logprobs_are_those_of_the_softmax(row in prop::collection::vec(-30f32..30.0, 1..3000), n in 0usize..=20) {
        let sampler = Sampler::new(row.len());
        let chosen = row.len() / 2;
        let got = sampler.logprobs(&row, chosen as TokenId, n).unwrap();
        let normalizer = row.iter().map(|&x| f64::from(x).exp()).sum::<f64>().ln();
        prop_assert!((f64::from(got.logprob) - (f64::from(row[chosen]) - normalizer)).abs() < 1e-5);
        let mut order: Vec<_> = (0..row.len()).collect();
        order.sort_by(|&a, &b| row[b].total_cmp(&row[a]).then(a.cmp(&b)));
        let ids: Vec<_> = got.top.iter().map(|l| l.id as usize).collect();
        prop_assert_eq!(&ids[..], &order[..n.min(row.len())]);
        prop_assert!(got.top.iter().all(|l| l.logprob <= 0.0));
    }
}

#[test]
fn draws_each_token_as_often_as_its_probability_says() {
    let logits = [0.0f32, 1.0, 2.0, -1.0, 1.5, f32::NEG_INFINITY];
    let n_draws = 40_000;
    // With a floor that drops nothing the draw goes through the candidates; the two ways must agree in distribution.
    for sampling in [PLAIN, Sampling { min_p: 1e-6, ..PLAIN }, Sampling { temperature: 0.5, ..PLAIN }] {
        let mut sampler = Sampler::new(logits.len());
        let mut counts = [0u32; 6];
        for position in 0..n_draws {
            counts[sampler.choose(&logits, &sampling, &[], 7, position).unwrap() as usize] += 1;
        }
        let weights = logits.map(|x| f64::from(x / sampling.temperature).exp());
        let total: f64 = weights.iter().sum();
        assert_eq!(counts[5], 0);
        for (count, weight) in counts.iter().zip(weights) {
            let (n, p) = (n_draws as f64, weight / total);
            let deviation = (f64::from(*count) - n * p).abs();
            assert!(deviation <= 4.5 * (n * p * (1.0 - p)).sqrt(), "{counts:?}");
        }
    }
}

#[test]
fn the_least_repetition_penalty_overflows_nothing() {
    let mut sampler = Sampler::new(3);
    for temperature in [0.0, 1e-30, 1.0] {
        let sampling = Sampling { temperature, repetition_penalty: f32::MIN_POSITIVE, ..PLAIN };
        assert_eq!(sampler.choose(&[5.0, 30.0, -1.0], &sampling, &[0, 2], 7, 9), Ok(0));
    }
}

#[test]
fn the_repetition_penalty_divides_positive_and_multiplies_negative_logits() {
    let mut sampler = Sampler::new(3);
    let penalized = Sampling { repetition_penalty: 2.0, ..GREEDY };
    assert_eq!(sampler.choose(&[3.0, 2.0, 1.0], &penalized, &[], 0, 0), Ok(0));
    assert_eq!(sampler.choose(&[3.0, 2.0, 1.0], &penalized, &[0], 0, 0), Ok(1));
    assert_eq!(sampler.choose(&[3.0, 2.0, 1.0], &penalized, &[0, 1], 0, 0), Ok(0));
    assert_eq!(sampler.choose(&[-1.0, -1.5, -9.0], &penalized, &[0], 0, 0), Ok(1));
    let encouraged = Sampling { repetition_penalty: 0.5, ..GREEDY };
    assert_eq!(sampler.choose(&[3.0, 2.0, 1.0], &encouraged, &[1], 0, 0), Ok(1));
}

#[test]
fn ties_at_a_cut_go_to_the_lower_ids() {
    let mut sampler = Sampler::new(6);
    let row = [1.0, 2.0, 1.0, 1.0, 2.0, 1.0];
    let mut ids = |sampling| kept(&mut sampler, &row, &sampling).iter().map(|c| c.id).collect::<Vec<_>>();
    assert_eq!(ids(Sampling { top_k: 4, ..PLAIN }), [0, 1, 2, 4]);
    assert_eq!(ids(Sampling { top_k: 1, ..PLAIN }), [1]);
    // The two most likely have 0.576 of the mass, each other 0.106.
    assert_eq!(ids(Sampling { top_p: 0.6, ..PLAIN }), [0, 1, 4]);
    assert_eq!(ids(Sampling { top_p: 0.5, ..PLAIN }), [1, 4]);
    assert_eq!(ids(Sampling { min_p: 0.9, ..PLAIN }), [1, 4]);
}

#[test]
fn top_p_is_a_share_of_what_top_k_left() {
    // Without top-k, 0.5 of the mass needs all of the first three.
    let mut sampler = Sampler::new(100);
    let row: Vec<f32> = (0..100).map(|i| if i < 3 { 3.0 } else { 0.0 }).collect();
    let n_kept = |sampler: &mut Sampler, sampling| kept(sampler, &row, &sampling).len();
    assert_eq!(n_kept(&mut sampler, Sampling { top_p: 0.35, ..PLAIN }), 3);
    assert_eq!(n_kept(&mut sampler, Sampling { top_k: 3, top_p: 0.35, ..PLAIN }), 2);
}

#[test]
fn the_coldest_and_the_flattest_settings_do_not_overflow() {
    let mut sampler = Sampler::new(3);
    let cold = Sampling { temperature: f32::MIN_POSITIVE, ..PLAIN };
    assert_eq!(sampler.choose(&[1e30, 3e38, -3e38], &cold, &[], 0, 0), Ok(1));
    let hot = Sampling { temperature: f32::MAX, ..PLAIN };
    assert!(sampler.choose(&[1e30, 3e38, -3e38], &hot, &[], 0, 0).unwrap() < 3);
}

#[test]
fn a_row_without_a_finite_maximum_is_a_fault_and_not_a_panic() {
    let mut sampler = Sampler::new(2);
    for row in [[f32::NAN; 2], [f32::NEG_INFINITY; 2], [f32::INFINITY, 0.0]] {
        for sampling in [GREEDY, PLAIN, Sampling { top_k: 3, top_p: 0.5, min_p: 0.1, ..PLAIN }] {
            let fault = sampler.choose(&row, &sampling, &[], 0, 0).unwrap_err();
            assert!(fault.to_string().contains("no finite maximum"));
        }
        assert!(sampler.logprobs(&row, 0, 2).is_err());
    }
}
