//! A file's tensors into device memory: several threads read, the copies run behind them.
//!
//! A piece of the file goes from a pinned slot to its place by an asynchronous copy on the loading stream. Q8_0 blocks go by a
//! detour through a staging area, because kernels want values and scales apart. When all is there, some tensors are read back
//! through the handles that the kernels will use and compared with the file.

use std::collections::VecDeque;

use cuda_sys::{Device, DeviceBuffer, Event, PinnedBuffer, Stream, sys};
use gguf_parser::Gguf;
use half::f16;
use quant::Format;
use weight_loader::{ModelFile, Piece, SlotSink, StreamError};

use super::CudaError;
use super::arena::{CHUNK, MatrixAt, Plan};

/// Bytes of a pinned slot: copies of this size run at the link's speed, and pinning more memory costs more time than it saves.
const SLOT_BYTES: usize = 2 << 20;
/// Threads that read the file. One copies out of the page cache at 5 to 10 GB/s; the link takes 55.
const MAX_READERS: usize = 12;
/// Bytes of a Q8_0 block: an F16 scale and 32 values.
const Q8_0_BLOCK_BYTES: usize = 34;

/// A model's weights in device memory.
pub(super) struct Weights {
    /// All matrices.
    pub(super) arena: DeviceBuffer<u8>,
    /// All vectors.
    pub(super) vectors: DeviceBuffer<f32>,
    /// The same on the host, for what is computed from them once.
    pub(super) host_vectors: Vec<f32>,
}

/// Allocates and fills the memory that `plan` describes.
pub(super) fn load(
    device: &Device,
    stream: &Stream,
    file: &ModelFile,
    gguf: &Gguf<'_>,
    plan: &Plan,
    progress: &mut (dyn FnMut(u64, u64) + Send),
) -> Result<Weights, CudaError> {
    let host_vectors = read_vectors(file, gguf, plan)?;
    let vectors = device.alloc_from(&host_vectors, stream)?;
    let arena = device.alloc_zeroed::<u8>(plan.arena_bytes)?;

    let pieces: Vec<Piece<'_>> = weight_loader::pieces(gguf, SLOT_BYTES)
        .into_iter()
        .filter(|piece| plan.matrices.contains_key(piece.tensor.name))
        .collect();
    let longest = pieces.iter().map(|piece| piece.n_bytes).max().unwrap_or(0);
    let n_readers =
        std::thread::available_parallelism().map_or(1, usize::from).min(MAX_READERS).min(pieces.len().max(1));
    let slots = (0..(n_readers + 2).min(pieces.len().max(1)))
        .map(|_| Ok(Slot(device.alloc_pinned(longest)?)))
        .collect::<Result<Vec<_>, CudaError>>()?;
    let has_blocks = plan.matrices.values().any(|matrix| matrix.format == Format::Q8_0);
    let staging = device.alloc_zeroed::<u8>(if has_blocks { longest } else { 0 })?;
    let mut sink = Sink {
        stream,
        plan,
        arena,
        staging,
        in_flight: VecDeque::new(),
        spare_events: Vec::new(),
        done_bytes: 0,
        total_bytes: gguf.tensors.iter().map(|tensor| tensor.n_bytes).sum(),
        progress,
    };
    let streamed = weight_loader::stream(file, &pieces, slots, n_readers, &mut sink);
    // Slots that a failed stream leaves behind may still be read by copies: nothing is freed before they are done.
    stream.synchronize()?;
    match streamed {
        Ok(_slots) => {}
        Err(StreamError::Load(error)) => return Err(error.into()),
        Err(StreamError::Sink(error)) => return Err(error),
    }
    let Sink { arena, .. } = sink;
    Ok(Weights { arena, vectors, host_vectors })
}

/// All norms and biases, widened to F32.
fn read_vectors(file: &ModelFile, gguf: &Gguf<'_>, plan: &Plan) -> Result<Vec<f32>, CudaError> {
    let mut values = vec![0.0; plan.n_vector_values];
    for (name, &(start, n)) in &plan.vectors {
        let Some(info) = gguf.tensor(name) else { continue };
        let Some(format) = Format::from_name(info.ty.name()) else { continue };
        let mut bytes = vec![0; info.n_bytes as usize];
        file.read_tensor(info, 0, &mut bytes)?;
        quant::dequantize(format, &bytes, &mut values[start..start + n]);
    }
    Ok(values)
}

/// Pinned memory that pieces are read into.
struct Slot(PinnedBuffer<u8>);

impl AsMut<[u8]> for Slot {
    fn as_mut(&mut self) -> &mut [u8] {
        self.0.as_mut_slice()
    }
}

/// Starts a copy for every filled slot, and knows when it is done.
struct Sink<'a> {
    stream: &'a Stream,
    plan: &'a Plan,
    arena: DeviceBuffer<u8>,
    /// Q8_0 blocks on their way.
    staging: DeviceBuffer<u8>,
    in_flight: VecDeque<(Slot, Event)>,
    spare_events: Vec<Event>,
    done_bytes: u64,
    total_bytes: u64,
    progress: &'a mut (dyn FnMut(u64, u64) + Send),
}

impl SlotSink<Slot> for Sink<'_> {
    type Error = CudaError;

    fn filled(&mut self, slot: Slot, piece: Piece<'_>) -> Result<(), CudaError> {
        let Some(matrix) = self.plan.matrices.get(piece.tensor.name) else {
            unreachable!("only matrices are streamed")
        };
        let event = match self.spare_events.pop() {
            Some(event) => event,
            None => Event::new(self.stream.device())?,
        };
        let copied = self.copy(&slot, matrix, &piece);
        // Whatever became of it, the slot may be in use until the stream has passed the event.
        let recorded = event.record(self.stream);
        self.in_flight.push_back((slot, event));
        copied?;
        recorded?;
        self.done_bytes += piece.n_bytes as u64;
        (self.progress)(self.done_bytes, self.total_bytes);
        Ok(())
    }

    fn next_free(&mut self) -> Result<Slot, CudaError> {
        let Some((slot, event)) = self.in_flight.pop_front() else { unreachable!("called while a slot is in flight") };
        event.synchronize()?;
        self.spare_events.push(event);
        Ok(slot)
    }
}

impl Sink<'_> {
    fn copy(&mut self, slot: &Slot, matrix: &MatrixAt, piece: &Piece<'_>) -> Result<(), CudaError> {
        let start = piece.start as usize;
        if let (Format::Q8_0, Some(scales)) = (matrix.format, matrix.scales) {
            return self.copy_blocks(slot, matrix, scales, start, piece.n_bytes);
        }
        let file_row_bytes = matrix.format.row_bytes(matrix.n_cols);
        if file_row_bytes == matrix.row_bytes {
            return self.copy_bytes(slot, 0, matrix.values + start, piece.n_bytes);
        }
        // Rows that end in padding go one by one. Only small models have such rows, or very odd ones.
        let (mut at, end) = (start, start + piece.n_bytes);
        while at < end {
            let (row, in_row) = (at / file_row_bytes, at % file_row_bytes);
            let n_bytes = (file_row_bytes - in_row).min(end - at);
            self.copy_bytes(slot, at - start, matrix.values + row * matrix.row_bytes + in_row, n_bytes)?;
            at += n_bytes;
        }
        Ok(())
    }

    fn copy_bytes(&mut self, slot: &Slot, from: usize, to: usize, n_bytes: usize) -> Result<(), CudaError> {
        let mut target = self.arena.slice_mut(to..to + n_bytes);
        // SAFETY: the slot goes back to the readers, who write into it, only after `next_free` has waited for the event that
        // is recorded behind this copy; and it is not freed before `load` has waited for the stream.
        unsafe { target.copy_from_pinned_async(&slot.0, from..from + n_bytes, self.stream) }?;
        Ok(())
    }

    /// Blocks to the staging area, and from there values and scales to their places. The stream keeps the next piece's copy
    /// behind this one's kernel.
    fn copy_blocks(
        &mut self,
        slot: &Slot,
        matrix: &MatrixAt,
        scales: usize,
        start: usize,
        n_bytes: usize,
    ) -> Result<(), CudaError> {
        let (first_block, n_blocks) = (start / Q8_0_BLOCK_BYTES, n_bytes / Q8_0_BLOCK_BYTES);
        let mut staging = self.staging.slice_mut(..n_bytes);
        // SAFETY: as in `copy_bytes`.
        unsafe { staging.copy_from_pinned_async(&slot.0, 0..n_bytes, self.stream) }?;
        let scales_at = scales + first_block * size_of::<f16>();
        let args = sys::orcd_split_q8_0_args {
            blocks: self.staging.as_ptr(),
            values: self.arena.typed_mut::<i8>(matrix.values + first_block * CHUNK, n_blocks * CHUNK).as_mut_ptr(),
            scales: self.arena.typed_mut::<f16>(scales_at, n_blocks).as_mut_ptr(),
            n_blocks: n_blocks as u64,
        };
        // SAFETY: `n_blocks` blocks at each of the pointers, as just sliced; the buffers outlive the stream's work, because
        // `load` waits for it.
        let status = unsafe { sys::orcd_split_q8_0(&args, self.stream.raw()) };
        Ok(self.stream.launched("orcd_split_q8_0", status)?)
    }
}

/// Compares a matrix's first and last values, read back through the handle that kernels use, with the file's.
///
/// # Errors
/// [`CudaError::ReadBack`] names the tensor and the first value that differs.
pub(super) fn check_read_back(
    file: &ModelFile,
    gguf: &Gguf<'_>,
    name: &str,
    matrix: &MatrixAt,
    arena: &DeviceBuffer<u8>,
    stream: &Stream,
) -> Result<(), CudaError> {
    let Some(info) = gguf.tensor(name) else { return Ok(()) };
    let row_bytes = matrix.format.row_bytes(matrix.n_cols);
    for row in [0, matrix.n_rows - 1] {
        let mut bytes = vec![0; row_bytes];
        file.read_tensor(info, (row * row_bytes) as u64, &mut bytes)?;
        let mut expected = vec![0.0; matrix.n_cols];
        quant::dequantize(matrix.format, &bytes, &mut expected);
        let got = read_row(matrix, row, arena, stream)?;
        let differs = |(a, b): (&f32, &f32)| a.to_bits() != b.to_bits() && !(a.is_nan() && b.is_nan());
        if let Some(column) = expected.iter().zip(&got).position(differs) {
            return Err(CudaError::ReadBack {
                name: name.to_owned(),
                row,
                column,
                expected: expected[column],
                got: got[column],
            });
        }
    }
    Ok(())
}

/// One row's values, as the device has them.
fn read_row(matrix: &MatrixAt, row: usize, arena: &DeviceBuffer<u8>, stream: &Stream) -> Result<Vec<f32>, CudaError> {
    let at = matrix.values + row * matrix.row_bytes;
    let mut values = vec![0.0; matrix.n_cols];
    let Some(scales) = matrix.scales else {
        let bytes = arena.slice(at..at + matrix.format.row_bytes(matrix.n_cols)).to_vec(stream)?;
        quant::dequantize(matrix.format, &bytes, &mut values);
        return Ok(values);
    };
    let n_blocks = matrix.n_cols / CHUNK;
    let quants = arena.typed::<i8>(at, matrix.n_cols).to_vec(stream)?;
    let scales = arena.typed::<f16>(scales + row * n_blocks * size_of::<f16>(), n_blocks).to_vec(stream)?;
    for (i, value) in values.iter_mut().enumerate() {
        *value = scales[i / CHUNK].to_f32() * f32::from(quants[i]);
    }
    Ok(values)
}
