//! `quantize`: a model's matrices in another format, everything else as it was.
//!
//! One pass: types are chosen and the new file's head is laid out first (`recipe`), then tensor by tensor pieces of the mapped
//! input are converted on all threads (`convert`) and appended (`new_file`). Memory holds a piece, never a tensor.

mod convert;
mod new_file;
mod recipe;
mod summary;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use anyhow::Context as _;
use gguf_parser::writer::{GgufWriter, Header, OwnedValue};
use gguf_parser::{Gguf, TensorInfo, TensorType};
use quant::Format;
use tokio_util::sync::CancellationToken;
use transformer::ModelSpec;
use weight_loader::ModelFile;

use crate::cli::{QuantizeArgs, WeightsChoice};
use crate::logging::{self, Quiet};
use crate::progress::{Loading, Work};
use crate::{output, signals};

use convert::{Conversion, PIECE};
use new_file::NewFile;
use recipe::{Chosen, Facts};
use summary::Summary;

/// The value of `general.quantization_version`: ggml's, of today's layouts of all formats.
const QUANTIZATION_VERSION: u32 = 2;
/// Bytes that are copied between two looks at the signals.
const COPY_BYTES: usize = 8 << 20;

/// A tensor and what becomes of it.
struct Job<'a> {
    tensor: &'a TensorInfo<'a>,
    chosen: Chosen,
    /// `None`: its bytes stay.
    conversion: Option<Conversion>,
}

/// A signal has asked to stop.
#[derive(Debug, thiserror::Error)]
#[error("interrupted: nothing was written")]
struct Interrupted;

/// Runs the command.
pub(crate) fn run(args: &QuantizeArgs) -> anyhow::Result<ExitCode> {
    logging::init(&args.log, Quiet::Yes)?;
    let began = Instant::now();
    let file = ModelFile::open(&args.input)?;
    new_file::check(&args.output, &args.input, args.force)?;
    let gguf = file.gguf()?;
    let jobs = plan(args, &gguf).with_context(|| format!("model {:?}", file.name()))?;
    let header = head(args.to, &gguf, &jobs)?;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(args.threads.unwrap_or(0) as usize).build()?;

    let temporary = Arc::new(OnceLock::<PathBuf>::new());
    // Only a second signal needs this: after the first, the file goes when it is dropped.
    let clean_up = {
        let temporary = temporary.clone();
        move || temporary.get().into_iter().for_each(|path| drop(std::fs::remove_file(path)))
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let interrupted = runtime.block_on(async { signals::watch_and(clean_up) }).context("cannot watch for signals")?;
    let new = NewFile::create(&args.output, args.force)?;
    let _ = temporary.set(new.path().to_owned());
    match pool.install(|| write(args, &file, &jobs, &header, new, &interrupted)) {
        Ok(()) => {}
        Err(error) if error.is::<Interrupted>() => {
            output::note(&error.to_string());
            return Ok(ExitCode::from(signals::INTERRUPTED));
        }
        Err(error) => return Err(error),
    }
    output::write(&Summary::of(&jobs, file.bytes().len() as u64, header.file_len).shown(args, began.elapsed()))?;
    Ok(ExitCode::SUCCESS)
}

/// What becomes of each tensor, in the file's order.
fn plan<'a>(args: &QuantizeArgs, gguf: &'a Gguf<'a>) -> anyhow::Result<Vec<Job<'a>>> {
    let n_files = gguf.metadata.u64("split.count")?.unwrap_or(1);
    anyhow::ensure!(n_files <= 1, "is one of {n_files} files that make a model together; merge them first");
    let spec = ModelSpec::from_gguf(gguf)?;
    let facts = Facts::of(gguf, &spec);
    gguf.tensors.iter().map(|tensor| job(args, &facts, tensor)).collect()
}

fn job<'a>(args: &QuantizeArgs, facts: &Facts, tensor: &'a TensorInfo<'a>) -> anyhow::Result<Job<'a>> {
    let chosen = recipe::choose(args.to, facts, tensor);
    if chosen.ty == tensor.ty {
        return Ok(Job { tensor, chosen, conversion: None });
    }
    let (name, ty) = (tensor.name, tensor.ty);
    let from = Format::from_tensor_type(ty).with_context(|| format!("tensor {name:?}: {ty} cannot be read"))?;
    let to = Format::from_tensor_type(chosen.ty)
        .filter(|format| format.can_quantize())
        .with_context(|| format!("tensor {name:?}: {} cannot be written", chosen.ty))?;
    let is_quantized = !matches!(ty, TensorType::F32 | TensorType::F16 | TensorType::BF16);
    anyhow::ensure!(
        !is_quantized || args.allow_requantize,
        "tensor {name:?}: is {ty}, quantized already; begin with the F16, BF16 or F32 file, or use --allow-requantize"
    );
    Ok(Job { tensor, chosen, conversion: Some(Conversion { from, to }) })
}

/// The new file's head: all metadata in its order, two keys changed or added.
fn head(to: WeightsChoice, gguf: &Gguf<'_>, jobs: &[Job<'_>]) -> anyhow::Result<Header> {
    let changes = [("general.quantization_version", QUANTIZATION_VERSION), ("general.file_type", to.file_type())];
    let mut writer = GgufWriter::new();
    for (key, value) in gguf.metadata.iter() {
        let changed = changes.iter().find(|(changed, _)| *changed == key);
        writer.kv(key, changed.map_or_else(|| OwnedValue::from(value), |(_, n)| (*n).into()));
    }
    for (key, n) in changes.iter().filter(|(key, _)| gguf.metadata.get(key).is_none()) {
        writer.kv(*key, *n);
    }
    for job in jobs {
        writer.tensor(job.tensor.name, job.chosen.ty, &job.tensor.shape);
    }
    Ok(writer.finish()?)
}

/// Writes the whole file.
fn write(
    args: &QuantizeArgs,
    file: &ModelFile,
    jobs: &[Job<'_>],
    header: &Header,
    mut new: NewFile,
    interrupted: &CancellationToken,
) -> anyhow::Result<()> {
    let total = jobs.iter().map(|job| job.tensor.n_bytes).sum();
    let mut done = 0;
    let mut progress = Loading::of(Work::Quantize, args.log.log_format);
    progress.set(done, total);
    new.write(&header.bytes)?;
    let mut out = Vec::new();
    for (job, place) in jobs.iter().zip(&header.tensors) {
        new.pad_to(place.start)?;
        let bytes = job.tensor.bytes(file.bytes());
        let piece_bytes = job.conversion.map_or(COPY_BYTES, |conversion| conversion.from.row_bytes(PIECE));
        for (i, piece) in bytes.chunks(piece_bytes).enumerate() {
            if interrupted.is_cancelled() {
                return Err(Interrupted.into());
            }
            match job.conversion {
                None => new.write(piece)?,
                Some(conversion) => new.write(converted(job.tensor, conversion, i, piece, &mut out)?)?,
            }
            done += piece.len() as u64;
            progress.set(done, total);
        }
    }
    new.pad_to(header.file_len)?;
    if interrupted.is_cancelled() {
        return Err(Interrupted.into());
    }
    new.finish()
}

/// Piece `i` of a tensor in its new format, in memory that is used again.
fn converted<'o>(
    tensor: &TensorInfo<'_>,
    conversion: Conversion,
    i: usize,
    piece: &[u8],
    out: &'o mut Vec<u8>,
) -> anyhow::Result<&'o [u8]> {
    let n_elements = piece.len() / conversion.from.block_bytes() * conversion.from.block_len();
    out.resize(conversion.to.row_bytes(n_elements), 0);
    conversion.convert(piece, out).map_err(|misfit| {
        let element = (i * PIECE + misfit.element) as u64;
        let (row, column) = (element / tensor.shape.row_len(), element % tensor.shape.row_len());
        let reason = match misfit.value.is_finite() {
            true => format!("has no room in {}, BF16 and F32 have more", conversion.to.name()),
            false => "is no number: the model is damaged".to_owned(),
        };
        anyhow::anyhow!("tensor {:?}: the value {:e} in row {row}, column {column} {reason}", tensor.name, misfit.value)
    })?;
    Ok(out)
}
