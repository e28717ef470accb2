//! Tiny models with something changed.

use std::io::Write;
use std::path::Path;

use gguf_parser::writer::{GgufWriter, OwnedValue};
use gguf_parser::{Gguf, TensorType};
use test_support::tiny_model::TinyModel;

/// The model with other metadata.
pub(crate) fn with_metadata(model: &TinyModel, changes: &[(&str, OwnedValue)]) -> Vec<u8> {
    let bytes = model.build();
    let gguf = Gguf::parse(&bytes).unwrap();
    let mut writer = GgufWriter::new();
    copy_metadata(&gguf, &mut writer, changes);
    for tensor in &gguf.tensors {
        writer.tensor(tensor.name, tensor.ty, &tensor.shape);
    }
    let header = writer.finish().unwrap();
    let mut file = header.bytes;
    file.resize(header.file_len as usize, 0);
    for (tensor, place) in gguf.tensors.iter().zip(header.tensors) {
        file[place.start as usize..place.end as usize].copy_from_slice(tensor.bytes(&bytes));
    }
    file
}

/// A model with one matrix of zeros in a type that this worker knows by name only.
pub(crate) fn with_a_matrix_in_tq1_0(matrix: &str) -> Vec<u8> {
    // Rows of whole blocks.
    let model = TinyModel { n_layers: 1, d_model: 256, d_ff: 256, ..TinyModel::default() };
    let ty = TensorType::TQ1_0;
    let change = |name: &str, shape: &[u64], _: &[u8]| {
        let n_bytes = shape.iter().product::<u64>() / ty.block_len() * ty.block_bytes();
        (name == matrix).then(|| (ty.id(), vec![0; n_bytes as usize]))
    };
    model.builder().change_tensors(change).build()
}

/// The model's vocabulary alone, in a file that claims this architecture.
pub(crate) fn vocabulary(model: &TinyModel, architecture: &str) -> Vec<u8> {
    let bytes = model.build();
    let mut writer = GgufWriter::new();
    copy_metadata(&Gguf::parse(&bytes).unwrap(), &mut writer, &[("general.architecture", architecture.into())]);
    writer.finish().unwrap().bytes
}

/// A model that takes a while to load: 300 MB of zeros that are a hole in the file.
pub(crate) fn write_large(path: &Path) {
    const WIDTH: u64 = 1024;
    const FEED_FORWARD: u64 = 6144;
    let bytes = TinyModel { n_layers: 8, ..TinyModel::default() }.build();
    let small = Gguf::parse(&bytes).unwrap();
    let widened = |n: &u64| match *n {
        64 => WIDTH,
        96 => FEED_FORWARD,
        // Two KV heads of four.
        32 => WIDTH / 2,
        n => n,
    };
    let mut writer = GgufWriter::new();
    let widths = [("qwen2.embedding_length", WIDTH as u32), ("qwen2.feed_forward_length", FEED_FORWARD as u32)];
    copy_metadata(&small, &mut writer, &widths.map(|(key, n)| (key, n.into())));
    for tensor in &small.tensors {
        writer.tensor(tensor.name, tensor.ty, &tensor.shape.iter().map(widened).collect::<Vec<_>>());
    }
    let header = writer.finish().unwrap();
    let mut file = std::fs::File::create(path).unwrap();
    file.write_all(&header.bytes).unwrap();
    file.set_len(header.file_len).unwrap();
}

fn copy_metadata(gguf: &Gguf<'_>, writer: &mut GgufWriter, changes: &[(&str, OwnedValue)]) {
    for (key, value) in gguf.metadata.iter() {
        let changed = changes.iter().find(|(changed, _)| *changed == key).map(|(_, value)| value.clone());
        writer.kv(key, changed.unwrap_or_else(|| value.into()));
    }
}
