//! A file's tensors into device memory: several threads read, the copies run behind them.
//!
//! A piece of the file goes from a pinned slot to its place by an asynchronous copy on the loading stream. Blocks of quantised
//! matrices are sorted into planes by the threads that read them, on their way into the slot, and each plane is a copy. When all
//! is there, some tensors are read back through the handles that the kernels will use and compared with the file.

use std::collections::VecDeque;

use cuda_sys::{Device, DeviceBuffer, Event, PinnedBuffer, Stream};
use gguf_parser::Gguf;
use quant::Format;
use quant::planes::{self, N_PLANES};
use weight_loader::{ModelFile, Piece, SlotSink, StreamError};

use super::CudaError;
use super::arena::{MatrixAt, Plan, PlanesAt};

/// Bytes of a pinned slot: copies of this size run at the link's speed, and pinning more memory costs more time than it saves.
const SLOT_BYTES: usize = 2 << 20;
/// Threads that read the file. One copies out of the page cache at 5 to 10 GB/s; the link takes 55.
const MAX_READERS: usize = 12;

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
    let longest = pieces.iter().map(|piece| slot_bytes(plan.matrices.get(piece.tensor.name), piece)).max().unwrap_or(0);
    let n_readers =
        std::thread::available_parallelism().map_or(1, usize::from).min(MAX_READERS).min(pieces.len().max(1));
    let slots = (0..(n_readers + 2).min(pieces.len().max(1)))
        .map(|_| Ok(Slot { pinned: device.alloc_pinned(longest)?, blocks: Vec::new(), plan }))
        .collect::<Result<Vec<_>, CudaError>>()?;
    let mut sink = Sink {
        stream,
        plan,
        arena,
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

/// Pinned memory that pieces are read into, or sorted into: planes follow each other without a gap.
struct Slot<'a> {
    pinned: PinnedBuffer<u8>,
    /// The file's blocks, where they have to be sorted.
    blocks: Vec<u8>,
    plan: &'a Plan,
}

/// Bytes of each plane that a piece is sorted into.
fn plane_bytes(planes: &PlanesAt, format: Format, n_bytes: usize) -> [usize; N_PLANES] {
    planes.layout.n_bytes(n_bytes / format.block_bytes() * format.block_len())
}

/// Bytes that a piece takes in a slot.
fn slot_bytes(matrix: Option<&MatrixAt>, piece: &Piece<'_>) -> usize {
    let planes = matrix.and_then(|matrix| Some((matrix.planes.as_ref()?, matrix.format)));
    planes.map_or(piece.n_bytes, |(planes, format)| plane_bytes(planes, format, piece.n_bytes).iter().sum())
}

impl weight_loader::Slot for Slot<'_> {
    fn room_for(&mut self, piece: &Piece<'_>) -> &mut [u8] {
        match self.plan.matrices.get(piece.tensor.name) {
            Some(MatrixAt { planes: Some(_), .. }) => {
                self.blocks.resize(piece.n_bytes, 0);
                &mut self.blocks
            }
            _ => &mut self.pinned.as_mut_slice()[..piece.n_bytes],
        }
    }

    fn read(&mut self, piece: &Piece<'_>) {
        let Some(matrix) = self.plan.matrices.get(piece.tensor.name) else { return };
        let Some(at) = &matrix.planes else { return };
        let mut rest = self.pinned.as_mut_slice();
        let parts = plane_bytes(at, matrix.format, piece.n_bytes).map(|n_bytes| {
            let (plane, behind) = std::mem::take(&mut rest).split_at_mut(n_bytes);
            rest = behind;
            plane
        });
        planes::pack(matrix.format, &self.blocks, parts);
    }
}

/// Starts a copy for every filled slot, and knows when it is done.
struct Sink<'a> {
    stream: &'a Stream,
    plan: &'a Plan,
    arena: DeviceBuffer<u8>,
    in_flight: VecDeque<(Slot<'a>, Event)>,
    spare_events: Vec<Event>,
    done_bytes: u64,
    total_bytes: u64,
    progress: &'a mut (dyn FnMut(u64, u64) + Send),
}

impl<'a> SlotSink<Slot<'a>> for Sink<'a> {
    type Error = CudaError;

    fn filled(&mut self, slot: Slot<'a>, piece: Piece<'_>) -> Result<(), CudaError> {
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

    fn next_free(&mut self) -> Result<Slot<'a>, CudaError> {
        let Some((slot, event)) = self.in_flight.pop_front() else { unreachable!("called while a slot is in flight") };
        event.synchronize()?;
        self.spare_events.push(event);
        Ok(slot)
    }
}

impl Sink<'_> {
    fn copy(&mut self, slot: &Slot<'_>, matrix: &MatrixAt, piece: &Piece<'_>) -> Result<(), CudaError> {
        let start = piece.start as usize;
        if let Some(planes) = &matrix.planes {
            return self.copy_planes(slot, planes, matrix.format, start, piece.n_bytes);
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

    fn copy_bytes(&mut self, slot: &Slot<'_>, from: usize, to: usize, n_bytes: usize) -> Result<(), CudaError> {
        let mut target = self.arena.slice_mut(to..to + n_bytes);
        // SAFETY: the slot goes back to the readers, who write into it, only after `next_free` has waited for the event that
        // is recorded behind this copy; and it is not freed before `load` has waited for the stream.
        unsafe { target.copy_from_pinned_async(&slot.pinned, from..from + n_bytes, self.stream) }?;
        Ok(())
    }

    /// What [`Slot::read`] has sorted, each plane's part to its place. Pieces are whole blocks.
    fn copy_planes(
        &mut self,
        slot: &Slot<'_>,
        planes: &PlanesAt,
        format: Format,
        start: usize,
        n_bytes: usize,
    ) -> Result<(), CudaError> {
        let before = plane_bytes(planes, format, start);
        let mut from = 0;
        for (i, n_bytes) in plane_bytes(planes, format, n_bytes).into_iter().enumerate() {
            if n_bytes > 0 {
                self.copy_bytes(slot, from, planes.at[i] + before[i], n_bytes)?;
            }
            from += n_bytes;
        }
        Ok(())
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
    let mut values = vec![0.0; matrix.n_cols];
    let Some(planes_at) = &matrix.planes else {
        let at = matrix.values + row * matrix.row_bytes;
        let bytes = arena.slice(at..at + matrix.format.row_bytes(matrix.n_cols)).to_vec(stream)?;
        quant::dequantize(matrix.format, &bytes, &mut values);
        return Ok(values);
    };
    let n_bytes = planes_at.layout.n_bytes(matrix.n_cols);
    let mut planes: [Vec<u8>; N_PLANES] = Default::default();
    for (i, plane) in planes.iter_mut().enumerate() {
        if n_bytes[i] > 0 {
            let at = planes_at.at[i] + row * n_bytes[i];
            *plane = arena.slice(at..at + n_bytes[i]).to_vec(stream)?;
        }
    }
    planes::unpack(matrix.format, planes.each_ref().map(Vec::as_slice), &mut values);
    Ok(values)
}
