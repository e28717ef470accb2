//! After start-up a step allocates nothing.
//!
//! A test binary of its own: it counts every allocation of the process.
#![allow(unsafe_code)] // A global allocator is an unsafe trait; this one counts and passes everything on.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use transformer::cpu::{CpuExecutor, CpuOptions};
use transformer::{BLOCK_TOKENS, Batch, BlockId, Executor, ModelSpec, Role};
use weight_loader::ModelFile;

static N_ALLOCATED: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: every call goes to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        N_ALLOCATED.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as the caller vouches.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: as the caller vouches.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

#[test]
fn a_step_allocates_nothing() {
    let path = test_support::checkout().join("crates/transformer/golden/data/qwen2_q8_0.gguf");
    let file = ModelFile::open(&path).unwrap();
    let gguf = file.gguf().unwrap();
    let spec = ModelSpec::from_gguf(&gguf).unwrap();
    let weights = weight_loader::load(&file, &gguf, &spec.tensors(), &mut |_| ()).unwrap();
    let options = CpuOptions { n_threads: 2, max_batch_tokens: 64, ..CpuOptions::default() };
    let mut executor = CpuExecutor::new(spec, weights, options).unwrap();

    let blocks: Vec<BlockId> = (0..executor.info().n_ctx.div_ceil(BLOCK_TOKENS) as u32).map(BlockId).collect();
    let mut batch = Batch::default();
    let mut n_by_step = Vec::with_capacity(200);
    for pos in 0..200 {
        batch.clear();
        match pos {
            0 => batch.push(Role::Prompt, &[7; 40], 0, &blocks, true),
            1 => batch.push(Role::Prompt, &[9; 64], 40, &blocks, true),
            _ => batch.push(Role::Generated, &[pos % 90], 102 + (pos % 100), &blocks, true),
        }
        let before = N_ALLOCATED.load(Ordering::Relaxed);
        assert!(executor.forward(&batch).unwrap().into_logits().iter().all(|x| x.is_finite()));
        n_by_step.push(N_ALLOCATED.load(Ordering::Relaxed) - before);
    }
    // The first steps may set up what the standard library makes on first use, such as a thread's parker.
    assert_eq!(n_by_step[2..], [0; 198], "first steps: {:?}", &n_by_step[..2]);
}
