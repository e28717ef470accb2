//! A batch that breaks a rule is refused by name and harms nothing; neither do weights that are no numbers.

use gguf_parser::{Gguf, TensorType};
use quant::Isa;
use transformer::{
    Batch, BlockId, Executor, ExecutorError, KvType, Role, SampleRequest, Sampling, StepOutput, TokenCount,
};

use crate::case::Case;
use crate::sequence::{executor, options, run};

/// Two sequences: three prompt tokens, and one generated token at position 17.
fn sound() -> Batch {
    let mut batch = Batch::default();
    batch.push(Role::Prompt, &[1, 2, 3], 0, &[BlockId(0)], true);
    batch.push(Role::Generated, &[4], 17, &[BlockId(1), BlockId(2)], true);
    batch
}

/// Both rows chosen for with the same history.
fn sample_both(batch: &mut Batch, history: &[u32], n_logprobs: Option<usize>) {
    let sampling = Sampling::default();
    let history: Vec<_> = history.iter().map(|&id| TokenCount { id, count: 1 }).collect();
    for _ in 0..2 {
        batch.sample_with(&SampleRequest { history: &history, n_logprobs, ..SampleRequest::new(&sampling, 1) });
    }
}

/// Both rows chosen for with the same biases and mask. The vocabulary has 97 tokens.
fn bias_both(batch: &mut Batch, logit_bias: &[(u32, f32)], mask: &[u32]) {
    let sampling = Sampling::default();
    for _ in 0..2 {
        batch.sample_with(&SampleRequest { logit_bias, mask, ..SampleRequest::new(&sampling, 1) });
    }
}

#[test]
fn each_broken_rule_is_named() {
    let case = Case::read("qwen2_tied");
    let mut executor = executor(case.bytes(), options(Isa::detect(), KvType::F16));
    let before = executor.forward(&sound()).unwrap().into_logits().to_vec();
    let mut texts = Vec::new();
    let breaks: [fn(&mut Batch); 35] = [
        |b| b.tokens[1] = 97,
        |b| b.tokens[0] = u32::MAX,
        |b| b.positions[1] = 7,
        |b| b.positions.truncate(2),
        |b| b.segments[0].rows = 0..2,
        |b| b.segments[1].rows = 3..5,
        |b| b.segments[1].rows = 3..3,
        |b| b.segments[0].role = Role::Generated,
        |b| b.segments.truncate(1),
        |b| b.segments[1].start_pos = u32::MAX,
        |b| b.segments[1].blocks = 1..2,
        |b| b.segments[1].blocks = 1..9,
        |b| b.segments[1].blocks = std::ops::Range { start: 3, end: 1 },
        |b| b.block_table[2] = BlockId(u32::MAX),
        |b| b.sample_rows = vec![4],
        |b| b.sample_rows = vec![3, 2],
        |b| b.sample_rows = vec![2, 2],
        |b| {
            b.clear();
            b.push(Role::Prompt, &[1; 129], 0, &[BlockId(0); 9], true);
        },
        |b| {
            b.clear();
            (0..129).for_each(|i| b.push(Role::Prompt, &[], 0, &[BlockId(i)], true));
        },
        |b| b.sample_with(&SampleRequest::new(&Sampling::default(), 1)),
        |b| sample_both(b, &[97], None),
        |b| sample_both(b, &[4], Some(21)),
        |b| {
            sample_both(b, &[4], None);
            b.samples[1].history = 1..3;
        },
        |b| {
            sample_both(b, &[4], None);
            b.samples[0].history = std::ops::Range { start: 1, end: 0 };
        },
        |b| sample_both(b, &[4, 4], None),
        |b| bias_both(b, &[(97, 1.0)], &[]),
        |b| bias_both(b, &[(5, 1.0), (4, 1.0)], &[]),
        |b| bias_both(b, &[(1, 0.0); 1025], &[]),
        |b| {
            bias_both(b, &[(4, 1.0)], &[]);
            b.samples[1].logit_bias = 1..3;
        },
        |b| bias_both(b, &[], &[0; 3]),
        |b| bias_both(b, &[], &[0; 5]),
        |b| {
            bias_both(b, &[], &[0; 4]);
            b.samples[1].mask = 5..9;
        },
        |b| {
            bias_both(b, &[], &[0; 4]);
            b.samples[0].mask = std::ops::Range { start: 1, end: 0 };
        },
        |b| {
            sample_both(b, &[4], Some(1));
            b.samples[1].given = Some(97);
        },
        |b| {
            bias_both(b, &[], &[0; 4]);
            b.samples[0].given = Some(4);
        },
    ];
    for break_it in breaks {
        let mut batch = sound();
        break_it(&mut batch);
        match executor.forward(&batch) {
            Err(error @ ExecutorError::InvalidBatch(_)) => texts.push(error.to_string()),
            other => panic!("{batch:?}: {:?}", other.map(|output| output.into_logits().len())),
        }
        assert_eq!(
            executor.forward(&sound()).unwrap().into_logits(),
            before,
            "a refused batch changed the executor: {batch:?}"
        );
    }
    insta::assert_snapshot!(texts.join("\n"));
}

#[test]
fn an_empty_batch_gives_nothing() {
    let case = Case::read("qwen2_tied");
    let mut executor = executor(case.bytes(), options(Isa::detect(), KvType::F16));
    assert_eq!(executor.forward(&Batch::default()).unwrap().into_logits(), &[] as &[f32]);
}

#[test]
fn rows_without_samples_give_no_logits() {
    let case = Case::read("qwen2_tied");
    let mut executor = executor(case.bytes(), options(Isa::detect(), KvType::F16));
    let mut batch = sound();
    batch.sample_rows.clear();
    assert_eq!(executor.forward(&batch).unwrap().into_logits(), &[] as &[f32]);
}

#[test]
fn logits_are_given_even_if_the_batch_says_how_to_choose() {
    let case = Case::read("qwen2_tied");
    let mut executor = executor(case.bytes(), options(Isa::detect(), KvType::F16));
    assert!(!executor.info().samples);
    let want = executor.forward(&sound()).unwrap().into_logits().to_vec();
    let mut batch = sound();
    sample_both(&mut batch, &[4], Some(20));
    assert_eq!(
        batch.samples.iter().map(|s| (s.position, s.history.clone())).collect::<Vec<_>>(),
        [(18, 0..1), (18, 1..2)]
    );
    assert_eq!(executor.forward(&batch).unwrap(), StepOutput::Logits(&want));
    batch.clear();
    assert_eq!(batch, Batch::default());
}

#[test]
fn weights_that_are_no_numbers_give_logits_that_are_none() {
    for fill in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX] {
        let case = Case::read("qwen2_bias30");
        let mut bytes = case.bytes();
        let tensors: Vec<_> =
            Gguf::parse(&bytes).unwrap().tensors.iter().map(|t| (t.ty, t.offset, t.n_bytes)).collect();
        for (ty, offset, n_bytes) in tensors {
            assert_eq!(ty, TensorType::F32);
            for value in
                bytes[offset as usize..(offset + n_bytes) as usize].as_chunks_mut::<4>().0.iter_mut().step_by(3)
            {
                *value = fill.to_le_bytes();
            }
        }
        for isa in Isa::available() {
            let mut executor = executor(bytes.clone(), options(isa, KvType::F16));
            let logits = run(&mut executor, &case.runs[0].tokens, case.runs[0].n_prompt, None);
            assert!(logits.iter().any(|x| !x.is_finite()), "{fill} {}", isa.name());
        }
    }
}
