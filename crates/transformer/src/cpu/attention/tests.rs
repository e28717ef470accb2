//! Attention against its formula in `f64`, and its bits against themselves.

use super::*;
use crate::{BlockId, KvType, Role};
use proptest::prelude::*;

/// Numbers in -1..1 that depend on nothing but their place.
fn noise(seed: u64, i: usize) -> f32 {
    let mut z = seed.wrapping_add((i as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 23) as f32 - 1.0
}

#[derive(Debug, Clone, Copy)]
struct Model {
    n_kv_heads: usize,
    group: usize,
    d_head: usize,
    ty: KvType,
    isa: Isa,
    n_threads: usize,
    seed: u64,
}

impl Model {
    fn n_heads(&self) -> usize {
        self.n_kv_heads * self.group
    }

    /// Rows `[range, width]` of the q, k or v of sequence `seq`.
    fn rows(&self, what: u64, seq: usize, range: Range<usize>, width: usize) -> Vec<f32> {
        let seed = self.seed ^ (what << 32) ^ ((seq as u64) << 40);
        range.flat_map(|p| (0..width).map(move |i| 2.0 * noise(seed, p * 4096 + i))).collect()
    }

    /// Outputs of every position of sequences of these lengths, which run side by side in steps of `chunk` rows each.
    fn run(&self, lengths: &[usize], chunk: usize) -> Vec<Vec<f32>> {
        let per_seq: Vec<usize> = lengths.iter().map(|len| len.div_ceil(BLOCK_TOKENS)).collect();
        let n_blocks = per_seq.iter().sum::<usize>();
        let shape = KvShape { n_layers: 2, n_blocks, n_kv_heads: self.n_kv_heads, d_head: self.d_head, ty: self.ty };
        let mut cache = KvCache::new(shape).expect("a small cache");
        // What a former owner may have left: must not reach any output.
        cache.fill_with_nan();
        // Blocks of the sequences are interleaved and run backwards.
        let mut free: Vec<u32> = (0..n_blocks as u32).collect();
        let tables: Vec<Vec<BlockId>> =
            per_seq.iter().map(|n| (0..*n).map(|_| BlockId(free.remove(free.len() / 2))).collect()).collect();
        let pool = Pool::new(self.n_threads).expect("threads");
        let n_ctx = lengths.iter().copied().max().unwrap_or(0);
        let mut scratch = AttentionScratch::new(self.n_threads, &shape, self.n_heads(), n_ctx, lengths.len());
        let (d_q, d_kv) = (self.n_heads() * self.d_head, self.n_kv_heads * self.d_head);
        let mut outs = vec![Vec::new(); lengths.len()];
        for start in (0..n_ctx).step_by(chunk) {
            let mut batch = Batch::default();
            let (mut q, mut k, mut v) = (Vec::new(), Vec::new(), Vec::new());
            for (seq, len) in lengths.iter().enumerate().filter(|(_, len)| **len > start) {
                let range = start..(start + chunk).min(*len);
                batch.push(Role::Prompt, &vec![0; range.len()], start as u32, &tables[seq], false);
                q.extend(self.rows(1, seq, range.clone(), d_q));
                k.extend(self.rows(2, seq, range.clone(), d_kv));
                v.extend(self.rows(3, seq, range, d_kv));
            }
            let mut out = vec![f32::NAN; q.len()];
            cache.append(1, &batch, &k, &v);
            attend(&pool, self.isa, &cache, 1, &batch, &q, &mut out, &mut scratch);
            let seqs = (0..lengths.len()).filter(|seq| lengths[*seq] > start);
            for (seq, segment) in seqs.zip(&batch.segments) {
                outs[seq].extend_from_slice(&out[segment.rows.start * d_q..segment.rows.end * d_q]);
            }
        }
        outs
    }

    /// The formula, in `f64`, for one sequence of `len` tokens.
    fn exact(&self, seq: usize, len: usize) -> Vec<f64> {
        let (d_q, d_kv) = (self.n_heads() * self.d_head, self.n_kv_heads * self.d_head);
        let stored = |x: Vec<f32>| -> Vec<f64> {
            let mut bytes = vec![0; x.len() * self.ty.n_bytes()];
            let format = if self.ty == KvType::F16 { quant::Format::F16 } else { quant::Format::F32 };
            quant::quantize(format, &x, &mut bytes);
            let mut wide = x;
            quant::dequantize(format, &bytes, &mut wide);
            wide.into_iter().map(f64::from).collect()
        };
        let q = self.rows(1, seq, 0..len, d_q);
        let k = stored(self.rows(2, seq, 0..len, d_kv));
        let v = stored(self.rows(3, seq, 0..len, d_kv));
        let mut out = vec![0.0; len * d_q];
        for (t, h) in (0..len).flat_map(|t| (0..self.n_heads()).map(move |h| (t, h))) {
            let at = |p: usize| p * d_kv + h / self.group * self.d_head;
            let q = &q[t * d_q + h * self.d_head..][..self.d_head];
            let score = |p: usize| q.iter().zip(&k[at(p)..]).map(|(q, k)| f64::from(*q) * k).sum::<f64>();
            let scores: Vec<f64> = (0..=t).map(|p| score(p) / (self.d_head as f64).sqrt()).collect();
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
            for (p, s) in scores.iter().enumerate() {
                for (d, v) in v[at(p)..][..self.d_head].iter().enumerate() {
                    out[t * d_q + h * self.d_head + d] += (s - max).exp() / sum * v;
                }
            }
        }
        out
    }
}

fn models() -> impl Strategy<Value = Model> {
    let ty = proptest::sample::select(vec![KvType::F16, KvType::F32]);
    let isa = proptest::sample::select(Isa::available());
    let d_head = proptest::sample::select(vec![4usize, 16, 20, 36, 64, 72, 128]);
    (1usize..4, 1usize..9, d_head, ty, isa, 1usize..4, any::<u64>()).prop_map(
        |(n_kv_heads, group, d_head, ty, isa, n_threads, seed)| Model {
            n_kv_heads,
            group,
            d_head,
            ty,
            isa,
            n_threads,
            seed,
        },
    )
}

fn bits(x: &[Vec<f32>]) -> Vec<Vec<u32>> {
    x.iter().map(|x| x.iter().map(|x| x.to_bits()).collect()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn is_close_to_its_formula(model in models(), len in 1usize..90) {
        let got = &model.run(&[len], 32)[0];
        let exact = model.exact(0, len);
        // Outputs are averages of values within -2..2; f32 sums of up to 128 products and 90 weights stay below 1e-5.
        for (i, (got, exact)) in got.iter().zip(&exact).enumerate() {
            prop_assert!((f64::from(*got) - exact).abs() < 1e-5, "element {}: {} is not {}", i, got, exact);
        }
    }

    #[test]
    fn a_row_has_the_same_bits_alone_and_in_company_whatever_the_chunks_and_threads(
        model in models(), a in 1usize..70, b in 1usize..70, chunk in 1usize..40,
    ) {
        let together = model.run(&[a, b], chunk);
        let single = Model { n_threads: 1, ..model };
        prop_assert_eq!(&bits(&together)[0], &bits(&single.run(&[a], 1))[0]);
        prop_assert_eq!(&bits(&together)[0], &bits(&single.run(&[a], a))[0]);
    }
}

#[test]
fn contexts_of_several_pieces_are_close_and_have_the_same_bits() {
    for (ty, isa) in Isa::available().into_iter().flat_map(|isa| [(KvType::F16, isa), (KvType::F32, isa)]) {
        let model = Model { n_kv_heads: 2, group: 7, d_head: 20, ty, isa, n_threads: 2, seed: 5 };
        let len = 2 * PIECE + 21;
        let whole = model.run(&[len, 3], len);
        for (got, exact) in whole[0].iter().zip(&model.exact(0, len)) {
            assert!((f64::from(*got) - exact).abs() < 1e-5, "{isa:?} {got} is not {exact}");
        }
        for chunk in [1, 7, 64, PIECE] {
            assert!(bits(&model.run(&[len], chunk))[0] == bits(&whole)[0], "{isa:?} chunks of {chunk}");
        }
    }
}
