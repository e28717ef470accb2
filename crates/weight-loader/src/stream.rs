//! Tensors through fixed slots: read by several threads, taken away by the caller.
//!
//! A copy into a GPU's memory runs by itself only out of pinned memory, which is dear to allocate; so there are a few
//! slots of it, and they go round: a thread reads the next piece of the file into a free slot, the calling thread hands
//! the slot to the [`SlotSink`], which starts the copy, and when that is done the slot is free again. Slots are moved and
//! never shared, so nobody can write into one that is being copied from. A [`Slot`] may rearrange what was read into it.
//!
//! One thread reads from the page cache at 5 to 10 GB/s, and a GPU's link carries 55.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;

use gguf_parser::{Gguf, TensorInfo};

use crate::{LoadError, ModelFile};

/// Slots that the sink may hold while others are being filled: one whose copy runs and one that waits behind it. With
/// `n_threads + 2` slots no thread ever waits for one, unless the copies are slower than reading.
const MAX_IN_SINK: usize = 2;

/// Consecutive bytes of one tensor.
#[derive(Debug, Clone, Copy)]
pub struct Piece<'a> {
    /// The tensor, as the directory has it.
    pub tensor: &'a TensorInfo<'a>,
    /// Where the piece begins in the tensor's data, in bytes.
    pub start: u64,
    /// Its length.
    pub n_bytes: usize,
}

impl Piece<'_> {
    /// Where it begins in the file.
    pub fn offset(&self) -> u64 {
        self.tensor.offset + self.start
    }
}

/// Where a piece of a file goes.
pub trait Slot: Send {
    /// The memory that a piece is read into: `piece.n_bytes` bytes.
    ///
    /// # Panics
    /// If there are not as many.
    fn room_for(&mut self, piece: &Piece<'_>) -> &mut [u8];

    /// Called on the reading thread when the piece is there: what is to be done with the bytes before they go on is done on many
    /// threads here, while they are in the processor's cache.
    fn read(&mut self, _piece: &Piece<'_>) {}
}

impl Slot for Vec<u8> {
    fn room_for(&mut self, piece: &Piece<'_>) -> &mut [u8] {
        &mut self[..piece.n_bytes]
    }
}

/// Takes filled slots and gives them back.
///
/// [`stream`] calls both functions on its own thread.
pub trait SlotSink<S> {
    /// Why the bytes could not be taken.
    type Error;

    /// `slot` has been told that it holds `piece`. May return before its bytes have been used.
    ///
    /// # Errors
    /// End the stream.
    fn filled(&mut self, slot: S, piece: Piece<'_>) -> Result<(), Self::Error>;

    /// Waits until a slot is free again, the one that was filled first, and gives it back. Only called while the sink
    /// holds a slot.
    ///
    /// # Errors
    /// End the stream.
    fn next_free(&mut self) -> Result<S, Self::Error>;
}

/// Why a stream ended before its last piece.
#[derive(Debug, thiserror::Error)]
pub enum StreamError<E> {
    /// The file could not be read.
    #[error(transparent)]
    Load(LoadError),
    /// The sink did not take a piece.
    #[error(transparent)]
    Sink(E),
}

/// All tensors of a file in pieces of at most `max_bytes`, in the order in which they lie in the file.
///
/// A piece is whole rows of its tensor, or whole blocks where one row alone is longer than `max_bytes`.
///
/// # Panics
/// If `max_bytes` is 0, or a tensor's blocks are longer.
pub fn pieces<'a>(gguf: &'a Gguf<'a>, max_bytes: usize) -> Vec<Piece<'a>> {
    assert!(max_bytes > 0, "pieces of 0 bytes never end");
    let mut by_offset: Vec<&TensorInfo<'_>> = gguf.tensors.iter().collect();
    by_offset.sort_by_key(|tensor| tensor.offset);
    let mut pieces = Vec::with_capacity(by_offset.len());
    for tensor in by_offset {
        let step = step_bytes(tensor, max_bytes as u64);
        let mut start = 0;
        while start < tensor.n_bytes {
            let n_bytes = step.min(tensor.n_bytes - start);
            pieces.push(Piece { tensor, start, n_bytes: n_bytes as usize });
            start += n_bytes;
        }
    }
    pieces
}

/// As many rows as fit into `max_bytes`, or as many blocks.
fn step_bytes(tensor: &TensorInfo<'_>, max_bytes: u64) -> u64 {
    let row_bytes = tensor.n_bytes / (tensor.shape.n_elements() / tensor.shape.row_len());
    let unit = if row_bytes == 0 || row_bytes > max_bytes { tensor.ty.block_bytes() } else { row_bytes };
    assert!(unit <= max_bytes, "{}: a block has {unit} bytes, a piece at most {max_bytes}", tensor.name);
    max_bytes / unit * unit
}

/// Reads every piece into a slot, with `n_threads` threads, and hands it to `sink` as soon as it is there: in any order,
/// each exactly once. Gives the slots back when the sink is done with all of them.
///
/// # Errors
/// The first that occurs; no further piece is read then, and slots that the sink holds stay with it.
///
/// # Panics
/// If there is no slot or thread, or a slot has no room for a piece.
pub fn stream<S: Slot, K: SlotSink<S>>(
    file: &ModelFile,
    pieces: &[Piece<'_>],
    slots: Vec<S>,
    n_threads: usize,
    sink: &mut K,
) -> Result<Vec<S>, StreamError<K::Error>> {
    assert!(n_threads > 0 && !slots.is_empty(), "{n_threads} threads, {} slots", slots.len());
    let n_slots = slots.len();
    let free = FreeSlots::new(slots);
    let next = AtomicUsize::new(0);
    let (sender, filled) = mpsc::channel();
    thread::scope(|scope| {
        // Threads that wait for a slot must not wait for ever, however this ends.
        let _closes = Closes(&free);
        for _ in 0..n_threads.min(pieces.len()) {
            let (sender, free, next) = (sender.clone(), &free, &next);
            scope.spawn(move || read_pieces(file, pieces, next, free, &sender));
        }
        drop(sender);
        take_pieces(pieces.len(), n_slots, &filled, &free, sink)
    })?;
    Ok(free.into_slots())
}

/// A slot and what was read into it.
type Filled<'p, S> = (S, Piece<'p>, Result<(), LoadError>);

/// The calling thread's part.
fn take_pieces<S, K: SlotSink<S>>(
    n_pieces: usize,
    n_slots: usize,
    filled: &mpsc::Receiver<Filled<'_, S>>,
    free: &FreeSlots<S>,
    sink: &mut K,
) -> Result<(), StreamError<K::Error>> {
    let max_in_sink = MAX_IN_SINK.min(n_slots - 1);
    let mut n_in_sink = 0;
    for _ in 0..n_pieces {
        let (slot, piece, result) = filled.recv().expect("a reading thread lives while pieces are missing");
        result.map_err(StreamError::Load)?;
        sink.filled(slot, piece).map_err(StreamError::Sink)?;
        n_in_sink += 1;
        while n_in_sink > max_in_sink {
            free.put(sink.next_free().map_err(StreamError::Sink)?);
            n_in_sink -= 1;
        }
    }
    for _ in 0..n_in_sink {
        free.put(sink.next_free().map_err(StreamError::Sink)?);
    }
    Ok(())
}

/// One reading thread's part: the next piece that nobody has, until there is none.
fn read_pieces<'p, S: Slot>(
    file: &ModelFile,
    pieces: &'p [Piece<'p>],
    next: &AtomicUsize,
    free: &FreeSlots<S>,
    filled: &mpsc::Sender<Filled<'p, S>>,
) {
    while let Some(&piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
        let Some(mut slot) = free.take() else { return };
        let result = file.read_tensor(piece.tensor, piece.start, slot.room_for(&piece));
        if result.is_ok() {
            slot.read(&piece);
        }
        if filled.send((slot, piece, result)).is_err() {
            return;
        }
    }
}

/// Slots that nobody uses.
struct FreeSlots<S> {
    state: Mutex<Free<S>>,
    changed: Condvar,
}

struct Free<S> {
    slots: Vec<S>,
    is_closed: bool,
}

impl<S> FreeSlots<S> {
    fn new(slots: Vec<S>) -> Self {
        Self { state: Mutex::new(Free { slots, is_closed: false }), changed: Condvar::new() }
    }

    /// No code that can panic runs under the lock, so a poisoned one is sound.
    fn lock(&self) -> MutexGuard<'_, Free<S>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, slot: S) {
        self.lock().slots.push(slot);
        self.changed.notify_one();
    }

    /// Waits for one; none once the stream is over.
    fn take(&self) -> Option<S> {
        let mut free = self.lock();
        loop {
            if free.is_closed {
                return None;
            }
            if let Some(slot) = free.slots.pop() {
                return Some(slot);
            }
            free = self.changed.wait(free).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn into_slots(self) -> Vec<S> {
        self.state.into_inner().unwrap_or_else(PoisonError::into_inner).slots
    }
}

/// Closes the slots when dropped.
struct Closes<'f, S>(&'f FreeSlots<S>);

impl<S> Drop for Closes<'_, S> {
    fn drop(&mut self) {
        self.0.lock().is_closed = true;
        self.0.changed.notify_all();
    }
}
