//! Models in every format: logits are those of the same weights in F32, on the GPU within its gates.

use gguf_parser::TensorType;
use half::f16;
use quant::{Format, IntegerIsa, Isa};
use test_support::closeness::{Closeness, check_exempt};
use test_support::gguf::GgufBuilder;
use test_support::tiny_model::TinyModel;
use transformer::KvType;

use crate::sequence::{Target, run};

/// Rows of 256 and 512: whole blocks of every format.
fn model() -> TinyModel {
    TinyModel { d_model: 256, d_ff: 512, f16: false, ..TinyModel::default() }
}

fn type_id(format: Format) -> u32 {
    TensorType::ALL.iter().find(|ty| ty.name() == format.name()).unwrap().id()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

/// The values in a format; in one that is only read, random blocks of about their size.
fn encode(format: Format, values: &[f32]) -> Vec<u8> {
    let mut bytes = vec![0; format.row_bytes(values.len())];
    if format.can_quantize() {
        quant::quantize(format, values, &mut bytes);
        return bytes;
    }
    let rms = |values: &[f32]| (values.iter().map(|x| x * x).sum::<f32>() / values.len() as f32).sqrt();
    let mut state = 1u64;
    bytes.fill_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    });
    let halves: &[usize] = match format {
        Format::Q2_K => &[80, 82],
        Format::Q3_K => &[108],
        Format::IQ4_NL | Format::IQ4_XS => &[0],
        Format::MXFP4 => &[],
        _ => unreachable!("{format:?} can be made"),
    };
    let mut scale = |scale: f32| {
        for block in bytes.chunks_exact_mut(format.block_bytes()) {
            for &at in halves {
                block[at..at + 2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
            }
            if format == Format::MXFP4 {
                block[0] = (127.0 + scale.log2().round()) as u8;
            }
        }
        let mut wide = vec![0.0; values.len()];
        quant::dequantize(format, &bytes, &mut wide);
        rms(&wide)
    };
    let size = scale(1.0);
    scale(rms(values) / size);
    bytes
}

/// The model with matrix `i` in `format_of(i)`, and with the values of that in F32.
pub(crate) fn in_formats(format_of: impl Fn(usize) -> Format) -> [Vec<u8>; 2] {
    let matrices = |as_f32: bool| {
        let mut n_seen = 0;
        let change = |_: &str, shape: &[u64], data: &[u8]| {
            let [_, _] = shape else { return None };
            let format = format_of(n_seen);
            n_seen += 1;
            let values = floats(data);
            let bytes = encode(format, &values);
            if !as_f32 {
                return Some((type_id(format), bytes));
            }
            let mut wide = vec![0.0; values.len()];
            quant::dequantize(format, &bytes, &mut wide);
            Some((type_id(Format::F32), wide.into_iter().flat_map(f32::to_le_bytes).collect()))
        };
        let builder: GgufBuilder = model().builder();
        builder.change_tensors(change).build()
    };
    [matrices(false), matrices(true)]
}

/// The format of matrix `i` in a model of them all.
pub(crate) fn mixed(i: usize) -> Format {
    Format::ALL[(i * 5 + 3) % Format::ALL.len()]
}

/// A product's bits are those of its dequantized weights' product, so the logits' are too. Those of interleaved weights pass the
/// gates; returns how many of their greedy choices are exempt, and of how many.
fn check(what: &str, format_of: impl Fn(usize) -> Format) -> [usize; 2] {
    let [quantised, wide] = in_formats(format_of);
    let tokens: Vec<u32> = (0..40).map(|i| i * 37 % 256).collect();
    for isa in Isa::available() {
        let target = Target::Cpu(isa, KvType::F32, None);
        // A prompt of 34 tokens and six single ones: panels for many tokens and for few.
        let logits = |bytes: &[u8]| run(&mut *target.executor(bytes.to_vec()), &tokens, 34, None);
        let (got, expected) = (logits(&quantised), logits(&wide));
        assert!(expected.iter().all(|x| x.is_finite()), "{what}");
        assert!(expected.iter().any(|x| x.abs() > 0.1), "{what}: logits of a model that says nothing");
        let same = got.iter().zip(&expected).filter(|(a, b)| a.to_bits() == b.to_bits()).count();
        assert_eq!(same, expected.len(), "{what} {isa:?}: logits with the bits of the F32 model's");
    }
    // Interleaved weights are multiplied with activations of 16 bits, and in another order.
    let logits = |target: Target, bytes: &[u8]| run(&mut *target.executor(bytes.to_vec()), &tokens, 34, None);
    let want = logits(Target::Cpu(Isa::detect(), KvType::F32, None), &wide);
    let mut n_choices = [0, 0];
    for kv_type in [KvType::F32, KvType::F16] {
        let mut bits = Vec::new();
        for integers in IntegerIsa::available() {
            let target = Target::Cpu(Isa::detect(), kv_type, Some(integers));
            let got = logits(target, &quantised);
            let c = closeness(what, target, &got, &want, tokens.len());
            n_choices = [n_choices[0] + c.n_exempt, n_choices[1] + c.n_positions];
            bits.push(got.iter().map(|x| x.to_bits()).collect::<Vec<_>>());
        }
        assert!(bits.windows(2).all(|two| two[0] == two[1]), "{what} interleaved: other bits with other instructions");
    }
    n_choices
}

/// How close logits are that have to pass the target's gates.
fn closeness(what: &str, target: Target, got: &[f32], want: &[f32], n_tokens: usize) -> Closeness {
    let c = Closeness::of(got, want, want.len() / n_tokens);
    println!("{what:8} {target:12} {:9.1e} {:9.1e} {:9.1e}", c.error, c.max_error, c.mean_logprob_error);
    c.check(target.gates()).unwrap_or_else(|why| panic!("{what} {target}: {why}"));
    c
}

#[test]
fn models_of_each_and_of_mixed_formats_have_the_logits_of_their_values_in_f32() {
    let of_each = Format::ALL.iter().map(|&format| check(format.name(), |_| format));
    let [n_exempt, n_positions] =
        of_each.chain([check("mixed", mixed)]).fold([0, 0], |sum, n| [sum[0] + n[0], sum[1] + n[1]]);
    if n_positions == 0 {
        return println!("SKIPPED: interleaved weights need a processor with AVX2");
    }
    println!("{n_exempt} of {n_positions} greedy choices are exempt");
    check_exempt(n_exempt, n_positions).unwrap();
}

/// The CPU's logits of the same weights in F32 are the reference.
#[cfg(feature = "cuda")]
fn check_on_gpu(what: &str, format_of: impl Fn(usize) -> Format) {
    let [quantised, wide] = in_formats(format_of);
    let tokens: Vec<u32> = (0..120).map(|i| i * 37 % 256).collect();
    // Prompts multiply halves, single tokens the planes.
    let logits = |target: Target, bytes: &[u8]| run(&mut *target.executor(bytes.to_vec()), &tokens, 70, None);
    let want = logits(Target::Cpu(Isa::detect(), KvType::F32, None), &wide);
    let mut bits = Vec::new();
    for target in Target::all() {
        let got = logits(target, &quantised);
        closeness(what, target, &got, &want, tokens.len());
        bits.push(got.iter().map(|x| x.to_bits()).collect::<Vec<_>>());
    }
    assert!(bits.windows(2).all(|two| two[0] == two[1]), "{what}: graphs change bits");
}

#[cfg(feature = "cuda")]
#[test]
fn a_model_of_each_format_is_as_close_on_the_gpu() {
    if crate::cuda::skipped("a_model_of_each_format_is_as_close_on_the_gpu") {
        return;
    }
    for &format in Format::ALL {
        check_on_gpu(format.name(), |_| format);
    }
    check_on_gpu("mixed", mixed);
    // As in a Q4_K_M file: values and every other matrix in more bits.
    check_on_gpu("Q4_K_M", |i| if i % 3 == 0 { Format::Q6_K } else { Format::Q4_K });
}
