//! Tensors through slots: every byte arrives once, and whatever fails ends the stream.

use std::collections::VecDeque;
use std::fs;
use std::io::ErrorKind;
use std::time::Duration;

use gguf_parser::TensorType;
use proptest::prelude::*;
use test_support::gguf::GgufBuilder;
use weight_loader::{LoadError, ModelFile, Piece, SlotSink, StreamError, pieces, stream};

const I8: u32 = TensorType::I8.id();

/// Puts the file together again, and is as slow to give slots back as it can.
struct Copying {
    file: Vec<u8>,
    n_written: Vec<u8>,
    held: VecDeque<Vec<u8>>,
    most_held: usize,
    /// Fails at this piece.
    fails_at: Option<usize>,
    n_pieces: usize,
}

#[derive(Debug, thiserror::Error, PartialEq)]
#[error("the sink is full")]
struct Full;

impl Copying {
    fn new(n_bytes: usize) -> Self {
        let held = VecDeque::new();
        Self { file: vec![0; n_bytes], n_written: vec![0; n_bytes], held, most_held: 0, fails_at: None, n_pieces: 0 }
    }
}

impl SlotSink<Vec<u8>> for Copying {
    type Error = Full;

    fn filled(&mut self, slot: Vec<u8>, piece: Piece<'_>) -> Result<(), Full> {
        if self.fails_at == Some(self.n_pieces) {
            return Err(Full);
        }
        self.n_pieces += 1;
        let at = piece.offset() as usize..piece.offset() as usize + piece.n_bytes;
        self.file[at.clone()].copy_from_slice(&slot[..piece.n_bytes]);
        self.n_written[at].iter_mut().for_each(|n| *n += 1);
        self.held.push_back(slot);
        self.most_held = self.most_held.max(self.held.len());
        Ok(())
    }

    fn next_free(&mut self) -> Result<Vec<u8>, Full> {
        let mut slot = self.held.pop_front().expect("only asked while a slot is held");
        slot.fill(0xEE);
        Ok(slot)
    }
}

fn slots(n: usize, n_bytes: usize) -> Vec<Vec<u8>> {
    vec![vec![0xEE; n_bytes]; n]
}

/// Tensors of these shapes, of bytes that tell where they stand.
fn model(shapes: &[Vec<u64>]) -> Vec<u8> {
    let mut state = 1u32;
    let mut builder = GgufBuilder::new();
    for (i, shape) in shapes.iter().enumerate() {
        let data = (0..shape.iter().product::<u64>()).map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        });
        builder = builder.tensor(format!("t{i}"), I8, shape, data.collect());
    }
    builder.build()
}

fn write(bytes: &[u8]) -> (tempfile::TempDir, ModelFile) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    fs::write(&path, bytes).unwrap();
    let file = ModelFile::open(&path).unwrap();
    (dir, file)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn every_byte_arrives_once(
        shapes in prop::collection::vec(prop::collection::vec(1..30u64, 1..3), 1..8),
        max_bytes in 1..200usize,
        spare in 0..3usize,
        n_slots in 1..7usize,
        n_threads in 1..9usize,
        is_static in any::<bool>(),
    ) {
        let bytes = model(&shapes);
        let (_dir, file) = write(&bytes);
        let file = if is_static { ModelFile::from_static(bytes.clone().leak(), "static") } else { file };
        let gguf = file.gguf().unwrap();
        let pieces = pieces(&gguf, max_bytes);
        let mut sink = Copying::new(bytes.len());
        let back = stream(&file, &pieces, slots(n_slots, max_bytes + spare), n_threads, &mut sink).unwrap();
        prop_assert_eq!(back.len(), n_slots);
        prop_assert!(sink.held.is_empty() && sink.most_held <= n_slots);
        prop_assert_eq!(sink.n_pieces, pieces.len());
        for tensor in &gguf.tensors {
            let at = tensor.offset as usize..(tensor.offset + tensor.n_bytes) as usize;
            prop_assert_eq!(&sink.file[at.clone()], &bytes[at.clone()], "{}", tensor.name);
            prop_assert!(sink.n_written[at].iter().all(|n| *n == 1), "{}", tensor.name);
        }
        let n_tensor_bytes: u64 = gguf.tensors.iter().map(|tensor| tensor.n_bytes).sum();
        prop_assert_eq!(sink.n_written.iter().map(|n| u64::from(*n)).sum::<u64>(), n_tensor_bytes);
    }

    #[test]
    fn pieces_are_whole_rows_where_a_row_fits(
        rows in 1..40u64,
        row_len in 1..40u64,
        max_bytes in 1..400usize,
    ) {
        let file = ModelFile::from_static(model(&[vec![rows, row_len]]).leak(), "static");
        let gguf = file.gguf().unwrap();
        let pieces = pieces(&gguf, max_bytes);
        let mut end = 0;
        for piece in &pieces {
            prop_assert_eq!(piece.start, end);
            prop_assert!(piece.n_bytes <= max_bytes && piece.n_bytes > 0);
            prop_assert!((piece.n_bytes as u64).is_multiple_of(row_len) || row_len > max_bytes as u64);
            end += piece.n_bytes as u64;
        }
        prop_assert_eq!(end, rows * row_len);
    }
}

#[test]
fn a_sink_that_fails_ends_the_stream_with_its_own_error() {
    let (_dir, file) = write(&model(&[vec![1000, 10]]));
    let gguf = file.gguf().unwrap();
    let pieces = pieces(&gguf, 10);
    for fails_at in [0, 1, 7, 999] {
        let mut sink = Copying { fails_at: Some(fails_at), ..Copying::new(file.bytes().len()) };
        let error = stream(&file, &pieces, slots(4, 10), 3, &mut sink).unwrap_err();
        assert!(matches!(error, StreamError::Sink(Full)), "{error}");
        assert_eq!(sink.n_pieces, fails_at);
    }
}

#[test]
fn a_file_that_was_cut_is_an_error_that_names_the_tensor() {
    let (dir, file) = write(&model(&[vec![64, 1024], vec![64, 1024]]));
    let gguf = file.gguf().unwrap();
    let end_of_first = gguf.tensors[0].offset + gguf.tensors[0].n_bytes;
    fs::File::options().write(true).open(dir.path().join("model.gguf")).unwrap().set_len(end_of_first).unwrap();
    let pieces = pieces(&gguf, 4096);
    let mut sink = Copying::new(file.bytes().len());
    let error = stream(&file, &pieces, slots(3, 4096), 2, &mut sink).unwrap_err();
    let message = error.to_string();
    let StreamError::Load(LoadError::Read { tensor, source, .. }) = error else { panic!("{message}") };
    assert_eq!((tensor.as_str(), source.kind()), ("t1", ErrorKind::UnexpectedEof));
    assert!(message.contains(r#"tensor "t1": reading 4096 bytes at offset "#), "{message}");
}

#[test]
fn a_sink_that_panics_leaves_no_thread_waiting() {
    struct Panics;
    impl SlotSink<Vec<u8>> for Panics {
        type Error = Full;
        fn filled(&mut self, _: Vec<u8>, _: Piece<'_>) -> Result<(), Full> {
            // Time for the reading threads to come to wait for a slot.
            std::thread::sleep(Duration::from_millis(20));
            panic!("on purpose")
        }
        fn next_free(&mut self) -> Result<Vec<u8>, Full> {
            unreachable!("nothing was taken")
        }
    }
    let (_dir, file) = write(&model(&[vec![1000, 10]]));
    let gguf = file.gguf().unwrap();
    let pieces = pieces(&gguf, 10);
    let run = || stream(&file, &pieces, slots(1, 10), 4, &mut Panics).map(drop);
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err());
}

#[test]
fn a_file_without_tensors_needs_nothing_of_the_sink() {
    let file = ModelFile::from_static(GgufBuilder::new().build().leak(), "empty");
    let gguf = file.gguf().unwrap();
    let mut sink = Copying::new(0);
    assert_eq!(stream(&file, &pieces(&gguf, 1), slots(2, 1), 4, &mut sink).unwrap().len(), 2);
    assert_eq!(sink.n_pieces, 0);
}

#[test]
fn reads_anywhere_and_never_past_the_end() {
    let bytes = model(&[vec![100]]);
    let (_dir, opened) = write(&bytes);
    for file in [opened, ModelFile::from_static(bytes.clone().leak(), "static")] {
        let mut buffer = [0; 10];
        file.read_at(7, &mut buffer).unwrap();
        assert_eq!(buffer, bytes[7..17]);
        file.read_at(bytes.len() as u64, &mut []).unwrap();
        for offset in [bytes.len() as u64 - 9, bytes.len() as u64, 1 << 40] {
            let error = file.read_at(offset, &mut buffer).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::UnexpectedEof, "{offset}");
        }
    }
}
