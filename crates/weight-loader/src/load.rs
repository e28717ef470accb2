//! Directory and specification to tensors: everything is checked first, then the pages are brought in.

use std::collections::HashSet;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

use gguf_parser::{Gguf, TensorInfo, TensorType};

use crate::mapping::Mapping;
use crate::{LoadError, ModelFile, TensorFault, Weights};

/// A tensor as an architecture wants it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name in the file.
    pub name: String,
    /// Its shape, slowest first.
    pub shape: Vec<u64>,
    /// The types that can be computed with.
    pub types: &'static [TensorType],
    /// Whether the file may do without it.
    pub optional: bool,
}

/// How far loading has come. Bytes only grow, and the last event has `done_bytes == total_bytes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress<'a> {
    /// Bytes of tensor data that are in memory.
    pub done_bytes: u64,
    /// Bytes of tensor data in all.
    pub total_bytes: u64,
    /// The tensor of which the latest bytes were.
    pub tensor: &'a str,
}

/// Checks a file's tensors against what its architecture wants, brings their pages into memory and hands them out.
///
/// `gguf` is `file`'s own directory. Every missing, superfluous, misshapen and wrongly typed tensor is found before any
/// data is read. `progress` is called on this thread, at least once a tensor.
///
/// # Errors
/// [`LoadError::Tensors`] names all faults at once; [`LoadError::Read`] a disk that failed.
///
/// # Panics
/// If `gguf` was parsed from a longer file than `file`.
pub fn load(
    file: &ModelFile,
    gguf: &Gguf<'_>,
    specs: &[TensorSpec],
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Weights, LoadError> {
    check(file, gguf, specs)?;
    prefault(file, gguf, progress)?;
    Ok(Weights::new(file.mapping(), gguf))
}

/// Checks a file's tensors against what its architecture wants, and reads nothing: what [`load`] does first, for those
/// who bring the data elsewhere by themselves ([`stream`](crate::stream)).
///
/// # Errors
/// [`LoadError::Tensors`] names all faults at once.
pub fn check(file: &ModelFile, gguf: &Gguf<'_>, specs: &[TensorSpec]) -> Result<(), LoadError> {
    match faults(gguf, specs) {
        faults if faults.is_empty() => Ok(()),
        faults => Err(LoadError::Tensors { path: file.name().to_owned(), faults }),
    }
}

/// Everything in which the file's tensors differ from `specs`: what [`load`] refuses, without loading.
pub fn faults(gguf: &Gguf<'_>, specs: &[TensorSpec]) -> Vec<TensorFault> {
    let mut faults = Vec::new();
    for spec in specs {
        match gguf.tensor(&spec.name) {
            Some(tensor) => faults.extend(mismatches(tensor, spec)),
            None if spec.optional => {}
            None => faults.push(TensorFault::Missing {
                name: spec.name.clone(),
                shape: spec.shape.clone(),
                types: spec.types,
            }),
        }
    }
    let known: HashSet<&str> = specs.iter().map(|spec| spec.name.as_str()).collect();
    let superfluous = gguf.tensors.iter().filter(|tensor| !known.contains(tensor.name));
    faults.extend(superfluous.map(|tensor| TensorFault::Superfluous {
        name: tensor.name.to_owned(),
        ty: tensor.ty,
        shape: tensor.shape,
    }));
    faults
}

fn mismatches(tensor: &TensorInfo<'_>, spec: &TensorSpec) -> impl Iterator<Item = TensorFault> {
    let name = || tensor.name.to_owned();
    let shape = (tensor.shape[..] != spec.shape[..]).then(|| TensorFault::Misshapen {
        name: name(),
        expected: spec.shape.clone(),
        got: tensor.shape,
    });
    let ty = (!spec.types.contains(&tensor.ty)).then(|| TensorFault::WrongType {
        name: name(),
        expected: spec.types,
        got: tensor.ty,
    });
    shape.into_iter().chain(ty)
}

/// How much of a tensor is brought in at once: often enough for a smooth progress bar, rarely enough that the calls cost
/// nothing (a page-cached piece takes about a millisecond).
const PIECE_BYTES: usize = 16 << 20;

/// The most threads that bring pages in. The work is the kernel's page-table handling, which stops scaling early.
const MAX_PREFAULT_THREADS: usize = 8;

/// A part of one tensor.
struct Piece {
    tensor_idx: usize,
    range: Range<usize>,
}

/// Brings all tensors' pages into memory, several threads at a time, and reports as pieces are done.
fn prefault(file: &ModelFile, gguf: &Gguf<'_>, progress: &mut dyn FnMut(Progress<'_>)) -> Result<(), LoadError> {
    let pieces = pieces(gguf);
    let total_bytes = gguf.tensors.iter().map(|tensor| tensor.n_bytes).sum();
    let n_threads = thread::available_parallelism().map_or(1, usize::from).min(MAX_PREFAULT_THREADS);
    let next = AtomicUsize::new(0);
    let (done, finished) = mpsc::channel();
    thread::scope(|scope| {
        for _ in 0..n_threads.min(pieces.len()) {
            let (done, pieces, next) = (done.clone(), &pieces, &next);
            scope.spawn(move || prefault_pieces(file.mapping(), pieces, next, &done));
        }
        drop(done);
        let mut done_bytes = 0;
        for (piece, result) in finished {
            let tensor = gguf.tensors[piece.tensor_idx].name;
            if let Err(source) = result {
                next.store(pieces.len(), Ordering::Relaxed); // the others stop after their piece
                return Err(LoadError::Read {
                    path: file.name().to_owned(),
                    tensor: tensor.to_owned(),
                    offset: piece.range.start as u64,
                    n_bytes: piece.range.len() as u64,
                    source,
                });
            }
            done_bytes += piece.range.len() as u64;
            progress(Progress { done_bytes, total_bytes, tensor });
        }
        Ok(())
    })
}

/// One thread's part: the next piece that nobody has, until there is none.
fn prefault_pieces<'p>(
    mapping: &Mapping,
    pieces: &'p [Piece],
    next: &AtomicUsize,
    done: &mpsc::Sender<(&'p Piece, io::Result<()>)>,
) {
    while let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
        let result = mapping.prefault(piece.range.clone());
        if done.send((piece, result)).is_err() {
            return; // an earlier piece has failed
        }
    }
}

/// All tensors, cut into pieces, in the order in which they lie in the file.
fn pieces(gguf: &Gguf<'_>) -> Vec<Piece> {
    let mut by_offset: Vec<usize> = (0..gguf.tensors.len()).collect();
    by_offset.sort_by_key(|&tensor_idx| gguf.tensors[tensor_idx].offset);
    let mut pieces = Vec::with_capacity(by_offset.len());
    for tensor_idx in by_offset {
        let Range { start, end } = byte_range(&gguf.tensors[tensor_idx]);
        let cuts = (start..end).step_by(PIECE_BYTES);
        pieces.extend(cuts.map(|at| Piece { tensor_idx, range: at..end.min(at + PIECE_BYTES) }));
    }
    pieces
}

/// A tensor's place in the mapping. It was parsed from memory, so its extent fits `usize`.
pub(crate) fn byte_range(tensor: &TensorInfo<'_>) -> Range<usize> {
    tensor.offset as usize..(tensor.offset + tensor.n_bytes) as usize
}
