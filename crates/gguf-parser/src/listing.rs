//! The directory as text: what `worker-orcd inspect` prints.

use std::borrow::Cow;
use std::fmt;

use crate::Gguf;

impl Gguf<'_> {
    /// The directory as a table for people: header, metadata, tensors. Long values are cut, control characters escaped.
    pub fn listing(&self) -> impl fmt::Display + '_ {
        Listing(self)
    }
}

struct Listing<'g>(&'g Gguf<'g>);

impl fmt::Display for Listing<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gguf = self.0;
        let n_bytes = gguf.tensors.iter().fold(0u64, |sum, tensor| sum.saturating_add(tensor.n_bytes));
        writeln!(
            f,
            "GGUF version {}, alignment {}, {} keys, {} tensors of {n_bytes} bytes from offset {}",
            gguf.version,
            gguf.alignment,
            gguf.metadata.len(),
            gguf.tensors.len(),
            gguf.data_offset,
        )?;
        write_metadata(f, gguf)?;
        write_tensors(f, gguf)
    }
}

/// The widest that a column of names grows: one absurdly long name must not push every line off the screen.
const MAX_COLUMN: usize = 48;

fn column<'t>(texts: impl Iterator<Item = &'t str>) -> usize {
    texts.map(|text| printable(text).chars().count()).max().unwrap_or(0).min(MAX_COLUMN)
}

fn write_metadata(f: &mut fmt::Formatter<'_>, gguf: &Gguf<'_>) -> fmt::Result {
    if gguf.metadata.is_empty() {
        return Ok(());
    }
    let width = column(gguf.metadata.iter().map(|(key, _)| key));
    writeln!(f)?;
    for (key, value) in gguf.metadata.iter() {
        writeln!(f, "{:width$}  {:6}  {value}", printable(key), value.value_type())?;
    }
    Ok(())
}

fn write_tensors(f: &mut fmt::Formatter<'_>, gguf: &Gguf<'_>) -> fmt::Result {
    if gguf.tensors.is_empty() {
        return Ok(());
    }
    let width = column(gguf.tensors.iter().map(|tensor| tensor.name));
    let shapes: Vec<String> = gguf.tensors.iter().map(|tensor| tensor.shape.to_string()).collect();
    let shape_width = column(shapes.iter().map(String::as_str));
    writeln!(f)?;
    for (tensor, shape) in gguf.tensors.iter().zip(&shapes) {
        writeln!(
            f,
            "{:width$}  {:7}  {shape:shape_width$}  {:>12} bytes at {}",
            printable(tensor.name),
            tensor.ty,
            tensor.n_bytes,
            tensor.offset,
        )?;
    }
    Ok(())
}

/// A name without quotes, with control characters escaped, so that a file cannot drive the terminal.
fn printable(name: &str) -> Cow<'_, str> {
    if name.chars().any(char::is_control) { name.escape_debug().to_string().into() } else { name.into() }
}
