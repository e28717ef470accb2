//! Makes the tensors on all cores while one thread writes them, to a file that gets its name once it is complete.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use anyhow::{Context, Result, anyhow};
use gguf_parser::writer::GgufWriter;
use indicatif::{ProgressBar, ProgressStyle};
use quant::Format;
use rayon::prelude::*;

use super::Args;
use super::model::{Tensor, tensor_type};
use super::values::Stream;

/// Elements that one thread makes at a time: a multiple of every block's length, and even. Fits the L2 cache as F32.
const CHUNK: usize = 16 * 1024;

/// Elements that are made before they are handed to the writer: enough chunks for many cores.
const GROUP: usize = 256 * CHUNK;

/// Groups that may wait for the disk: bounds the memory where the disk is the slower.
const MAX_WAITING: usize = 4;

/// What was written.
#[derive(Debug)]
pub(super) struct Written {
    pub(super) n_tensors: usize,
    pub(super) n_parameters: u64,
    pub(super) n_vocab: usize,
    pub(super) n_bytes: u64,
}

/// Makes the file that the options describe.
pub(super) fn write(args: &Args) -> Result<Written> {
    args.shape.check(args.format)?;
    let mut head = GgufWriter::new();
    args.shape.describe(&mut head, args.name.as_deref(), args.format);
    let n_vocab = args.vocab.write(args.n_vocab, &mut head)?;
    let tensors = args.shape.tensors(n_vocab);
    for tensor in &tensors {
        head.tensor(tensor.name.as_str(), tensor_type(tensor.format(args.format))?, &tensor.shape);
    }
    let head = head.finish()?;

    let part = PartFile::create(&args.out)?;
    let (sender, receiver) = sync_channel::<Vec<u8>>(MAX_WAITING);
    let progress = progress_bar(head.file_len);
    std::thread::scope(|scope| -> Result<()> {
        let writer = scope.spawn(|| write_all(&part, receiver, &progress));
        let made = make_all(args, &tensors, &head, &sender);
        drop(sender);
        // A writer that failed has hung up on the makers: its reason is the better one.
        writer.join().map_err(|_| anyhow!("the writing thread panicked"))??;
        made
    })?;
    progress.finish_and_clear();
    part.rename()?;
    let n_parameters = tensors.iter().map(Tensor::n_elements).sum();
    Ok(Written { n_tensors: tensors.len(), n_parameters, n_vocab, n_bytes: head.file_len })
}

fn make_all(
    args: &Args,
    tensors: &[Tensor],
    head: &gguf_parser::writer::Header,
    to: &SyncSender<Vec<u8>>,
) -> Result<()> {
    let send = |bytes| to.send(bytes).context("the file could not be written");
    send(head.bytes.clone())?;
    let mut at = head.bytes.len() as u64;
    for (tensor, place) in tensors.iter().zip(&head.tensors) {
        send(vec![0; (place.start - at) as usize])?;
        let stream = Stream::new(args.seed, &tensor.name);
        let format = tensor.format(args.format);
        let fill = |start, values: &mut [f32]| {
            stream.fill(start, args.spread.of(tensor.kind), values);
            args.spread.raise_peaks(tensor.kind, start, values);
        };
        let n = tensor.n_elements();
        for start in (0..n).step_by(GROUP) {
            send(make_group(fill, format, start, (n - start).min(GROUP as u64) as usize))?;
        }
        at = place.end;
    }
    send(vec![0; (head.file_len - at) as usize])
}

/// `n` elements from `start` on, as they stand in the file; `fill` makes the elements from a place on.
fn make_group(fill: impl Fn(u64, &mut [f32]) + Sync, format: Format, start: u64, n: usize) -> Vec<u8> {
    // A tensor's rows hold whole blocks, so its elements do, and so does every chunk.
    let mut bytes = vec![0; format.row_bytes(n)];
    let chunks = bytes.par_chunks_mut(format.row_bytes(CHUNK)).enumerate();
    chunks.for_each_init(
        || vec![0.0; CHUNK],
        |values, (idx, bytes)| {
            let values = &mut values[..CHUNK.min(n - idx * CHUNK)];
            fill(start + (idx * CHUNK) as u64, values);
            quant::quantize(format, values, bytes);
        },
    );
    bytes
}

fn write_all(part: &PartFile, from: Receiver<Vec<u8>>, progress: &ProgressBar) -> Result<()> {
    for bytes in from {
        (&part.file).write_all(&bytes).with_context(|| format!("writing {}", part.path.display()))?;
        progress.inc(bytes.len() as u64);
    }
    Ok(())
}

fn progress_bar(n_bytes: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:40} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left");
    ProgressBar::new(n_bytes).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// A file that is not complete yet: beside its goal, under another name, removed when dropped.
struct PartFile {
    file: File,
    path: PathBuf,
    goal: PathBuf,
}

impl PartFile {
    fn create(goal: &Path) -> Result<Self> {
        let mut path = OsString::from(goal);
        path.push(".part");
        let path = PathBuf::from(path);
        let file = File::create(&path).with_context(|| format!("creating {}", path.display()))?;
        Ok(Self { file, path, goal: goal.to_path_buf() })
    }

    fn rename(self) -> Result<()> {
        std::fs::rename(&self.path, &self.goal)
            .with_context(|| format!("renaming {} to {}", self.path.display(), self.goal.display()))
    }
}

impl Drop for PartFile {
    fn drop(&mut self) {
        // After the renaming there is nothing to remove; before it, what is left is of no use.
        let _ = std::fs::remove_file(&self.path);
    }
}
