//! The sampler against its definition, written the slow way.

use proptest::prelude::*;
use transformer::TokenCount;

use super::*;

const PLAIN: Sampling = Sampling { temperature: 1.0, ..Sampling::GREEDY };

/// Chooses with every token of `history` generated once.
fn choose(
    sampler: &mut Sampler,
    logits: &[f32],
    sampling: &Sampling,
    history: &[TokenId],
    seed: u64,
    position: u64,
) -> Result<TokenId, RowFault> {
    let history: Vec<_> = history.iter().map(|&id| TokenCount { id, count: 1 }).collect();
    sampler.choose(logits, &SampleRequest { history: &history, ..SampleRequest::new(sampling, seed) }, position)
}

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

/// Everything that changes logits before the draw.
#[derive(Debug, Clone)]
struct Changes {
    repetition_penalty: f32,
    presence_penalty: f32,
    frequency_penalty: f32,
    /// By token.
    counts: Vec<u32>,
    /// By token; 0 is none.
    biases: Vec<f32>,
    /// By token.
    is_allowed: Vec<bool>,
}

impl Changes {
    /// Chooses with these changes of `row`.
    fn choose(&self, row: &[f32], sampling: &Sampling, seed: u64) -> Result<TokenId, RowFault> {
        let &Changes { repetition_penalty, presence_penalty, frequency_penalty, .. } = self;
        let sampling = Sampling { repetition_penalty, presence_penalty, frequency_penalty, ..sampling.clone() };
        let counted = self.counts.iter().zip(0..).filter(|(count, _)| **count > 0);
        let history: Vec<_> = counted.map(|(&count, id)| TokenCount { id, count }).collect();
        let logit_bias: Vec<_> = (0..).zip(self.biases.iter().copied()).filter(|(_, bias)| *bias != 0.0).collect();
        let word = |bits: &[bool]| bits.iter().rev().fold(0, |word, &bit| word << 1 | u32::from(bit));
        let mask: Vec<u32> = self.is_allowed.chunks(32).map(word).collect();
        let request = SampleRequest {
            history: &history,
            logit_bias: &logit_bias,
            mask: if self.is_allowed.iter().all(|&is| is) { &[] } else { &mask },
            ..SampleRequest::new(&sampling, seed)
        };
        Sampler::new(row.len()).choose(row, &request, 3)
    }

    /// What becomes of one logit, as the definitions have it.
    fn logit(&self, id: usize, mut logit: f32) -> f32 {
        if !self.is_allowed[id] {
            return f32::NEG_INFINITY;
        }
        logit += self.biases[id];
        if self.counts[id] > 0 {
            logit = if logit > 0.0 { logit / self.repetition_penalty } else { logit * self.repetition_penalty };
            logit -= self.presence_penalty + self.frequency_penalty * self.counts[id] as f32;
        }
        logit
    }
}

fn any_changes(n_vocab: usize) -> impl Strategy<Value = Changes> {
    let is_allowed = prop_oneof![
        Just(vec![true; n_vocab]),
        prop::collection::vec(any::<bool>(), n_vocab),
        prop::collection::vec(prop::bool::weighted(0.02), n_vocab),
    ];
    let biases = prop::collection::vec(prop_oneof![5 => Just(0.0f32), 1 => -9f32..9.0], n_vocab);
    let counts = prop::collection::vec(prop_oneof![3 => Just(0u32), 1 => 1u32..30], n_vocab);
    let repetition = prop_oneof![Just(1.0f32), 0.2f32..2.0];
    let penalty = || prop_oneof![Just(0.0f32), -2f32..2.0];
    (repetition, penalty(), penalty(), counts, biases, is_allowed).prop_map(
        |(repetition_penalty, presence_penalty, frequency_penalty, counts, biases, is_allowed)| Changes {
            repetition_penalty,
            presence_penalty,
            frequency_penalty,
            counts,
            biases,
            is_allowed,
        },
    )
}

fn any_row_and_changes() -> impl Strategy<Value = (Vec<f32>, Changes)> {
    (1usize..300).prop_flat_map(|n| (prop::collection::vec(-30f32..30.0, n), any_changes(n)))
}

proptest! {
    #[test]
    fn biases_mask_and_penalties_change_logits_as_defined(
        (row, changes) in any_row_and_changes(),
        sampling in any_sampling(),
        greedy in any::<bool>(),
        seed: u64,
    ) {
        let sampling = if greedy { Sampling::GREEDY } else { sampling };
        let changed: Vec<f32> = (0..).zip(&row).map(|(id, &logit)| changes.logit(id, logit)).collect();
        let mut sampler = Sampler::new(row.len());
        let expected = sampler.choose(&changed, &SampleRequest::new(&sampling, seed), 3);
        let chosen = changes.choose(&row, &sampling, seed);
        prop_assert_eq!(chosen, expected);
        if let Ok(id) = chosen {
            prop_assert!(changes.is_allowed[id as usize]);
        } else {
            prop_assert!(!changes.is_allowed.contains(&true));
        }
    }

    #[test]
    fn a_bias_of_100_decides((row, changes) in any_row_and_changes(), sampling in any_sampling(), at: prop::sample::Index, seed: u64) {
        // Logits span less than the bias, so the sampler has no choice.
        let at = at.index(row.len());
        let mut changes = Changes { repetition_penalty: 1.0, biases: vec![0.0; row.len()], frequency_penalty: 0.0, ..changes };
        changes.biases[at] = 100.0;
        changes.is_allowed[at] = true;
        prop_assert_eq!(changes.choose(&row, &Sampling { temperature: 0.3, ..sampling.clone() }, seed), Ok(at as TokenId));
        changes.biases[at] = -100.0;
        if (0..row.len()).any(|id| id != at && changes.is_allowed[id]) {
            prop_assert_ne!(changes.choose(&row, &Sampling { temperature: 0.3, ..sampling }, seed), Ok(at as TokenId));
        }
    }

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
        let chosen = choose(&mut sampler, &row, &sampling, &[], seed, position).unwrap();
        let kept = kept(&mut sampler, &row, &sampling);
        let weight = sampler.weights[chosen as usize];
        prop_assert!(weight > 0.0);
        prop_assert!(kept.iter().any(|c| c.id == chosen));
        // A used sampler chooses as a new one does.
        prop_assert_eq!(choose(&mut sampler, &row, &sampling, &[], seed, position).unwrap(), chosen);
    }

    #[test]
    fn greedy_is_the_first_of_the_greatest(row in any_row()) {
        let mut sampler = Sampler::new(row.len());
        let maximum = finite_maximum(&row).unwrap();
        let first = row.iter().position(|&x| x == maximum).unwrap() as TokenId;
        prop_assert_eq!(choose(&mut sampler, &row, &Sampling::GREEDY, &[], 3, 4), Ok(first));
        prop_assert_eq!(choose(&mut sampler, &row, &Sampling { top_k: 1, ..PLAIN }, &[], 3, 4), Ok(first));
        prop_assert_eq!(choose(&mut sampler, &row, &Sampling { top_p: 0.0, ..PLAIN }, &[], 3, 4), Ok(first));
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
            counts[choose(&mut sampler, &logits, &sampling, &[], 7, position).unwrap() as usize] += 1;
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
        assert_eq!(choose(&mut sampler, &[5.0, 30.0, -1.0], &sampling, &[0, 2], 7, 9), Ok(0));
    }
}

#[test]
fn the_repetition_penalty_divides_positive_and_multiplies_negative_logits() {
    let mut sampler = Sampler::new(3);
    let penalized = Sampling { repetition_penalty: 2.0, ..Sampling::GREEDY };
    assert_eq!(choose(&mut sampler, &[3.0, 2.0, 1.0], &penalized, &[], 0, 0), Ok(0));
    assert_eq!(choose(&mut sampler, &[3.0, 2.0, 1.0], &penalized, &[0], 0, 0), Ok(1));
    assert_eq!(choose(&mut sampler, &[3.0, 2.0, 1.0], &penalized, &[0, 1], 0, 0), Ok(0));
    assert_eq!(choose(&mut sampler, &[-1.0, -1.5, -9.0], &penalized, &[0], 0, 0), Ok(1));
    let encouraged = Sampling { repetition_penalty: 0.5, ..Sampling::GREEDY };
    assert_eq!(choose(&mut sampler, &[3.0, 2.0, 1.0], &encouraged, &[1], 0, 0), Ok(1));
}

#[test]
fn presence_is_subtracted_once_and_frequency_for_each_time() {
    let choose = |presence_penalty, frequency_penalty| {
        let sampling = Sampling { presence_penalty, frequency_penalty, ..Sampling::GREEDY };
        let history = [TokenCount { id: 0, count: 1 }, TokenCount { id: 1, count: 3 }];
        let request = SampleRequest { history: &history, ..SampleRequest::new(&sampling, 0) };
        Sampler::new(3).choose(&[2.0, 3.0, 1.75], &request, 0)
    };
    assert_eq!(choose(0.0, 0.0), Ok(1));
    assert_eq!(choose(1.0, 0.0), Ok(1), "1, 2 and 1.75");
    assert_eq!(choose(1.5, 0.0), Ok(2), "0.5, 1.5 and 1.75");
    assert_eq!(choose(0.0, 0.375), Ok(1), "1.625, 1.875 and 1.75");
    assert_eq!(choose(0.0, 0.5), Ok(2), "1.5, 1.5 and 1.75");
    assert_eq!(choose(-2.0, 1.0), Ok(0), "3, 2 and 1.75");
}

#[test]
fn a_mask_that_allows_nothing_is_a_fault() {
    let sampling = PLAIN;
    let request = SampleRequest { mask: &[0, 0], ..SampleRequest::new(&sampling, 0) };
    let mut sampler = Sampler::new(40);
    assert!(sampler.choose(&[1.0; 40], &request, 0).is_err());
    assert_eq!(sampler.choose(&[1.0; 40], &SampleRequest { mask: &[0, 128], ..request }, 0), Ok(39));
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
    assert_eq!(choose(&mut sampler, &[1e30, 3e38, -3e38], &cold, &[], 0, 0), Ok(1));
    let hot = Sampling { temperature: f32::MAX, ..PLAIN };
    assert!(choose(&mut sampler, &[1e30, 3e38, -3e38], &hot, &[], 0, 0).unwrap() < 3);
}

#[test]
fn a_row_without_a_finite_maximum_is_a_fault_and_not_a_panic() {
    let mut sampler = Sampler::new(2);
    for row in [[f32::NAN; 2], [f32::NEG_INFINITY; 2], [f32::INFINITY, 0.0]] {
        for sampling in [Sampling::GREEDY, PLAIN, Sampling { top_k: 3, top_p: 0.5, min_p: 0.1, ..PLAIN }] {
            let fault = choose(&mut sampler, &row, &sampling, &[], 0, 0).unwrap_err();
            assert!(fault.to_string().contains("no finite maximum"));
        }
        assert!(sampler.logprobs(&row, 0, 2).is_err());
    }
}
