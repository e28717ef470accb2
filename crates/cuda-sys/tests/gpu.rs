//! Round trips through a GPU. Skipped, saying so, where there is none; with `WORKER_REQUIRE_GPU=1` that is a failure.

#![cfg(feature = "cuda")]
#![allow(unsafe_code, reason = "calls over the border")]

mod support;

use std::fmt::Debug;
use std::sync::{Mutex, PoisonError};

use cuda_sys::{ARCHITECTURES, CudaError, Device, DeviceRepr, Event, MemoryKind, Stream, sys};
use half::{bf16, f16};
use proptest::prelude::*;

/// One test at a time: some look at how much memory is free.
fn with_gpu(test: impl FnOnce(&Device, &Stream)) {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    // A test that failed leaves nothing behind that the next could stumble over.
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(device) = support::device() {
        let stream = device.stream().unwrap();
        test(&device, &stream);
        stream.synchronize().unwrap();
    }
}

/// Equal bits: NaN equals itself.
fn same<T: DeviceRepr + Debug>(got: &[T], want: &[T]) {
    let bytes = |values: &[T]| {
        // SAFETY: plain values without padding.
        unsafe { std::slice::from_raw_parts(values.as_ptr().cast::<u8>(), size_of_val(values)) }.to_vec()
    };
    assert_eq!(bytes(got), bytes(want));
}

#[test]
fn a_device_has_the_facts_that_kernels_need() {
    with_gpu(|device, _| {
        let (facts, memory) = (device.facts(), device.memory().unwrap());
        println!("{facts:?}, {memory:?}");
        assert!(!facts.name.is_empty() && facts.n_sms > 0 && facts.compute_capability.major >= 8);
        assert!(facts.l2_bytes >= 1 << 20 && facts.max_shared_bytes >= 64 << 10);
        assert!(memory.free > 0 && memory.free <= memory.total && memory.total <= facts.total_bytes);
    });
}

#[test]
fn kernels_start_early_only_where_their_code_knows_how_to_wait() {
    with_gpu(|device, _| {
        // Code for 90a runs on 9.0 alone; anything else runs from PTX, whose version says what it knows.
        let is_hopper = device.facts().compute_capability.to_string() == "9.0";
        let has_code = ARCHITECTURES.split(';').any(|arch| arch.starts_with("90"));
        // SAFETY: takes a flag; the thread is bound to the device, which `with_gpu` has opened. No launch reads it meanwhile.
        let on = unsafe { [1, 0].map(|flag| sys::orcd_set_dependent_launch(flag)) };
        println!("kernels for {ARCHITECTURES}: dependent launch {}", on[0]);
        assert!(on[1] == 0 && (on[0] == 1 || !(is_hopper && has_code)));
        assert!(on[0] == 0 || ARCHITECTURES != "80-virtual");
    });
}

#[test]
fn values_come_back_as_they_went() {
    fn round_trip<T: DeviceRepr + Debug>(device: &Device, stream: &Stream, values: &[T]) {
        let buffer = device.alloc_from(values, stream).unwrap();
        assert_eq!((buffer.len(), buffer.n_bytes()), (values.len(), size_of_val(values)));
        same(&buffer.to_vec(stream).unwrap(), values);
    }
    with_gpu(|device, stream| {
        round_trip(device, stream, &[1u8, 0, 255]);
        round_trip(device, stream, &[i32::MIN, -1, i32::MAX]);
        round_trip(device, stream, &[f16::NAN, f16::INFINITY, f16::from_bits(1)]);
        round_trip(device, stream, &[bf16::NEG_INFINITY, bf16::from_f32(3.0)]);
        round_trip(device, stream, &[f32::NAN, -0.0, f32::MIN_POSITIVE]);
        round_trip::<u64>(device, stream, &[]);
    });
}

#[test]
fn new_memory_is_zero_and_lies_on_the_device() {
    with_gpu(|device, stream| {
        for len in [1, 255, 256, 100_003] {
            let buffer = device.alloc_zeroed::<f32>(len).unwrap();
            same(&buffer.to_vec(stream).unwrap(), &vec![0.0; len]);
            assert_eq!(buffer.memory_kind().unwrap(), MemoryKind::Device);
        }
        assert!(device.alloc_zeroed::<f32>(0).unwrap().is_empty());
    });
}

#[test]
fn any_part_can_be_written_and_read() {
    let Some(device) = support::device() else { return };
    let stream = device.stream().unwrap();
    proptest!(ProptestConfig::with_cases(64), |(len in 1usize..3_000, a: u16, b: u16, seed: u32)| {
        let (a, b) = (a as usize % (len + 1), b as usize % (len + 1));
        let (start, end) = (a.min(b), a.max(b));
        let before: Vec<u32> = (0..len as u32).map(|i| i.wrapping_mul(seed)).collect();
        let part: Vec<u32> = (start..end).map(|i| !(i as u32)).collect();
        let mut buffer = device.alloc_from(&before, &stream).unwrap();
        buffer.slice_mut(start..end).copy_from_host(&part, &stream).unwrap();
        let mut want = before.clone();
        want[start..end].copy_from_slice(&part);
        same(&buffer.to_vec(&stream).unwrap(), &want);
        same(&buffer.slice(start..end).to_vec(&stream).unwrap(), &part);

        let mut other = device.alloc_zeroed::<u32>(end - start).unwrap();
        other.as_mut_slice().copy_from_device(buffer.slice(start..end), &stream).unwrap();
        same(&other.to_vec(&stream).unwrap(), &part);
        other.fill_zero(&stream).unwrap();
        same(&other.to_vec(&stream).unwrap(), &vec![0; end - start]);
    });
}

#[test]
fn parts_of_one_allocation_have_types_of_their_own() {
    with_gpu(|device, stream| {
        let mut arena = device.alloc_zeroed::<u8>(1024).unwrap();
        let halves: Vec<f16> = (0..100).map(|i| f16::from_f32(i as f32)).collect();
        let floats: Vec<f32> = (0..100).map(|i| i as f32 / 3.0).collect();
        arena.typed_mut::<f16>(0, 100).copy_from_host(&halves, stream).unwrap();
        arena.typed_mut::<f32>(256, 100).copy_from_host(&floats, stream).unwrap();
        same(&arena.typed::<f16>(0, 100).to_vec(stream).unwrap(), &halves);
        same(&arena.typed::<f32>(256, 100).to_vec(stream).unwrap(), &floats);
        for (offset, len) in [(2, 10), (1024, 1), (0, 257), (usize::MAX - 3, 1)] {
            let outside = std::panic::AssertUnwindSafe(|| arena.typed::<f32>(offset, len).len());
            assert!(std::panic::catch_unwind(outside).is_err(), "{offset} {len}");
        }
    });
}

#[test]
fn pinned_memory_is_copied_while_the_host_goes_on() {
    with_gpu(|device, stream| {
        let mut pinned = device.alloc_pinned::<u32>(70_000).unwrap();
        assert!(pinned.as_slice().iter().all(|value| *value == 0));
        for (i, value) in pinned.as_mut_slice().iter_mut().enumerate() {
            *value = i as u32;
        }
        let mut buffer = device.alloc_zeroed::<u32>(50_000).unwrap();
        let mut back = device.alloc_pinned::<u32>(60_000).unwrap();
        let done = Event::new(device).unwrap();
        // SAFETY: nothing touches either pinned buffer until the event says that both copies are done.
        unsafe {
            buffer.as_mut_slice().copy_from_pinned_async(&pinned, 7..50_007, stream).unwrap();
            buffer.as_slice().copy_to_pinned_async(&mut back, 10_000..60_000, stream).unwrap();
        }
        done.record(stream).unwrap();
        done.synchronize().unwrap();
        assert!(done.is_done().unwrap() && stream.is_idle().unwrap());
        same(&back.as_slice()[10_000..], &pinned.as_slice()[7..50_007]);
    });
}

#[test]
fn several_threads_fill_one_allocation() {
    with_gpu(|device, stream| {
        let mut buffer = device.alloc_zeroed::<u32>(10_000).unwrap();
        let (left, right) = buffer.as_mut_slice().split_at_mut(3_333);
        std::thread::scope(|scope| {
            for (mut part, base) in [(left, 0u32), (right, 3_333)] {
                scope.spawn(move || {
                    device.bind_to_this_thread().unwrap();
                    let stream = device.stream().unwrap();
                    let values: Vec<u32> = (base..base + part.len() as u32).collect();
                    part.copy_from_host(&values, &stream).unwrap();
                });
            }
        });
        same(&buffer.to_vec(stream).unwrap(), &(0..10_000).collect::<Vec<_>>());
    });
}

#[test]
fn an_event_orders_two_streams_and_measures_time() {
    with_gpu(|device, first| {
        let second = device.stream().unwrap();
        let (start, end) = (Event::timed(device).unwrap(), Event::timed(device).unwrap());
        let mut buffer = device.alloc_zeroed::<u8>(64 << 20).unwrap();
        start.record(first).unwrap();
        buffer.as_mut_slice().fill_bytes(0x5A, first).unwrap();
        end.record(first).unwrap();
        second.wait_for(&end).unwrap();
        assert!(buffer.to_vec(&second).unwrap().iter().all(|byte| *byte == 0x5A));
        let elapsed_ms = end.elapsed_ms_since(&start).unwrap();
        assert!(elapsed_ms > 0.0 && elapsed_ms < 1_000.0, "{elapsed_ms} ms");
    });
}

#[test]
fn a_recorded_graph_runs_again_on_new_contents() {
    with_gpu(|device, stream| {
        let mut source = device.alloc_from(&[1u32; 500], stream).unwrap();
        let mut target = device.alloc_zeroed::<u32>(1_000).unwrap();
        let graph = stream
            .capture(|stream| {
                target.slice_mut(..500).copy_from_device(source.as_slice(), stream)?;
                target.slice_mut(500..).copy_from_device(source.as_slice(), stream)
            })
            .unwrap();
        assert_eq!(graph.n_nodes().unwrap(), 2);
        let exec = graph.instantiate().unwrap();
        drop(graph);
        exec.upload(stream).unwrap();
        same(&target.to_vec(stream).unwrap(), &[0; 1_000]);
        for value in [2u32, 3] {
            source.copy_from_host(&[value; 500], stream).unwrap();
            // SAFETY: both buffers are alive, and only this stream uses them.
            unsafe { exec.launch(stream) }.unwrap();
            same(&target.to_vec(stream).unwrap(), &[value; 1_000]);
        }
    });
}

#[test]
fn a_capture_ends_with_the_error_of_what_it_records() {
    with_gpu(|device, stream| {
        let failing = stream.capture(|_| Err(CudaError::from_code(1, "orcd_nothing()")));
        assert!(failing.unwrap_err().is_invalid_value());
        let buffer = device.alloc_from(&[5u8; 3], stream).unwrap();
        same(&buffer.to_vec(stream).unwrap(), &[5; 3]);
    });
}

#[test]
fn too_large_an_allocation_fails_with_its_size_and_leaves_the_device_usable() {
    with_gpu(|device, stream| {
        let before = device.memory().unwrap().free;
        for len in [usize::MAX, 1 << 60, 1 << 44] {
            let error = device.alloc_zeroed::<f32>(len).unwrap_err();
            assert!(error.is_out_of_memory() && !error.is_sticky() && error.device == Some(0), "{error}");
            assert!(error.to_string().starts_with("cudaMalloc("), "{error}");
        }
        // SAFETY: takes nothing. What failed is not left for the next launch to find.
        assert_eq!(unsafe { cuda_sys::sys::cudaGetLastError() }, 0);
        let buffer = device.alloc_from(&[1.0f32, 2.0], stream).unwrap();
        same(&buffer.to_vec(stream).unwrap(), &[1.0, 2.0]);
        drop(buffer);
        let after = device.memory().unwrap().free;
        assert!(before.abs_diff(after) <= 64 << 20, "{before} bytes were free, and now {after}");
    });
}
