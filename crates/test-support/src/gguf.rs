//! Bytes of small GGUF files, whole or deliberately broken.
//!
//! Written apart from `gguf_parser::writer` on purpose: that one refuses to write what cannot be read, while a test of a
//! parser needs exactly such files; and two writers that know the format from its specification check each other.

/// Builds a GGUF file in memory. Counts, offsets and sizes follow from what is added, unless a `lie_` method overrides
/// them.
///
/// ```
/// use test_support::gguf::GgufBuilder;
///
/// let file = GgufBuilder::new()
///     .str("general.architecture", "qwen2")
///     .u32("qwen2.block_count", 1)
///     .tensor_f32("output_norm.weight", &[4], &[1.0; 4])
///     .build();
/// assert_eq!(&file[..4], b"GGUF");
/// ```
#[derive(Debug, Clone)]
pub struct GgufBuilder {
    magic: [u8; 4],
    version: u32,
    alignment: u64,
    n_entries: Option<u64>,
    n_tensors: Option<u64>,
    entries: Vec<Vec<u8>>,
    tensors: Vec<Tensor>,
}

#[derive(Debug, Clone)]
struct Tensor {
    name: Vec<u8>,
    ne: Vec<u64>,
    n_dims: Option<u32>,
    type_id: u32,
    offset: Option<u64>,
    data: Vec<u8>,
}

impl Default for GgufBuilder {
    fn default() -> Self {
        Self::new()
    }
}

/// GGUF's numbers of value types, as the specification lists them.
mod value_type {
    pub(super) const U32: u32 = 4;
    pub(super) const I32: u32 = 5;
    pub(super) const F32: u32 = 6;
    pub(super) const BOOL: u32 = 7;
    pub(super) const STRING: u32 = 8;
    pub(super) const ARRAY: u32 = 9;
    pub(super) const U64: u32 = 10;
}

impl GgufBuilder {
    /// An empty file of version 3 with alignment 32.
    pub fn new() -> Self {
        GgufBuilder {
            magic: *b"GGUF",
            version: 3,
            alignment: 32,
            n_entries: None,
            n_tensors: None,
            entries: Vec::new(),
            tensors: Vec::new(),
        }
    }

    /// Another magic.
    pub fn magic(mut self, magic: [u8; 4]) -> Self {
        self.magic = magic;
        self
    }

    /// Another version.
    pub fn version(mut self, version: u32) -> Self {
        self.version = version;
        self
    }

    /// Lays tensors out by `alignment`, and says so in `general.alignment`.
    pub fn alignment(mut self, alignment: u32) -> Self {
        self.alignment = u64::from(alignment);
        self.u32("general.alignment", alignment)
    }

    /// Another number of metadata entries than there are.
    pub fn lie_n_entries(mut self, n: u64) -> Self {
        self.n_entries = Some(n);
        self
    }

    /// Another number of tensors than there are.
    pub fn lie_n_tensors(mut self, n: u64) -> Self {
        self.n_tensors = Some(n);
        self
    }

    /// Another number of dimensions than the last tensor has.
    pub fn lie_n_dims(mut self, n_dims: u32) -> Self {
        self.last().n_dims = Some(n_dims);
        self
    }

    /// Another offset in the data section than the last tensor has.
    pub fn lie_offset(mut self, offset: u64) -> Self {
        self.last().offset = Some(offset);
        self
    }

    /// A metadata entry of any type, its value as bytes.
    pub fn raw(mut self, key: impl AsRef<[u8]>, type_id: u32, value: &[u8]) -> Self {
        let mut entry = string(key.as_ref());
        entry.extend(type_id.to_le_bytes());
        entry.extend(value);
        self.entries.push(entry);
        self
    }

    /// A `u32`.
    pub fn u32(self, key: &str, value: u32) -> Self {
        self.raw(key, value_type::U32, &value.to_le_bytes())
    }

    /// An `i32`.
    pub fn i32(self, key: &str, value: i32) -> Self {
        self.raw(key, value_type::I32, &value.to_le_bytes())
    }

    /// A `u64`.
    pub fn u64(self, key: &str, value: u64) -> Self {
        self.raw(key, value_type::U64, &value.to_le_bytes())
    }

    /// An `f32`.
    pub fn f32(self, key: &str, value: f32) -> Self {
        self.raw(key, value_type::F32, &value.to_le_bytes())
    }

    /// A boolean.
    pub fn bool(self, key: &str, value: bool) -> Self {
        self.raw(key, value_type::BOOL, &[u8::from(value)])
    }

    /// A string.
    pub fn str(self, key: &str, value: &str) -> Self {
        self.raw(key, value_type::STRING, &string(value.as_bytes()))
    }

    /// An array of strings.
    pub fn strs<S: AsRef<str>>(self, key: &str, values: &[S]) -> Self {
        let bytes = values.iter().flat_map(|value| string(value.as_ref().as_bytes()));
        let bytes = array(value_type::STRING, values.len(), bytes);
        self.raw(key, value_type::ARRAY, &bytes)
    }

    /// An array of `i32`.
    pub fn i32s(self, key: &str, values: &[i32]) -> Self {
        let bytes = array(value_type::I32, values.len(), values.iter().flat_map(|value| value.to_le_bytes()));
        self.raw(key, value_type::ARRAY, &bytes)
    }

    /// An array of `u32`.
    pub fn u32s(self, key: &str, values: &[u32]) -> Self {
        let bytes = array(value_type::U32, values.len(), values.iter().flat_map(|value| value.to_le_bytes()));
        self.raw(key, value_type::ARRAY, &bytes)
    }

    /// An array of `f32`.
    pub fn f32s(self, key: &str, values: &[f32]) -> Self {
        let bytes = array(value_type::F32, values.len(), values.iter().flat_map(|value| value.to_le_bytes()));
        self.raw(key, value_type::ARRAY, &bytes)
    }

    /// A tensor of any type number, its shape slowest first, its data as bytes.
    pub fn tensor(mut self, name: impl AsRef<[u8]>, type_id: u32, shape: &[u64], data: Vec<u8>) -> Self {
        let ne = shape.iter().rev().copied().collect();
        self.tensors.push(Tensor { name: name.as_ref().to_vec(), ne, n_dims: None, type_id, offset: None, data });
        self
    }

    /// An F32 tensor.
    ///
    /// # Panics
    /// If the shape does not hold that many values.
    pub fn tensor_f32(self, name: &str, shape: &[u64], values: &[f32]) -> Self {
        assert_eq!(shape.iter().product::<u64>(), values.len() as u64, "{name}");
        self.tensor(name, 0, shape, values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    /// An F16 tensor, the values rounded.
    ///
    /// # Panics
    /// If the shape does not hold that many values.
    pub fn tensor_f16(self, name: &str, shape: &[u64], values: &[f32]) -> Self {
        assert_eq!(shape.iter().product::<u64>(), values.len() as u64, "{name}");
        let bytes = values.iter().flat_map(|&value| half::f16::from_f32(value).to_le_bytes());
        self.tensor(name, 1, shape, bytes.collect())
    }

    /// Another type and other data for some of the tensors added so far: `change(name, shape, data)` is given each, its shape
    /// slowest first, and returns type number and data, or `None` to leave it.
    pub fn change_tensors(mut self, mut change: impl FnMut(&str, &[u64], &[u8]) -> Option<(u32, Vec<u8>)>) -> Self {
        for tensor in &mut self.tensors {
            let shape: Vec<u64> = tensor.ne.iter().rev().copied().collect();
            if let Some(changed) = change(&String::from_utf8_lossy(&tensor.name), &shape, &tensor.data) {
                (tensor.type_id, tensor.data) = changed;
            }
        }
        self
    }

    /// The file's bytes. The last tensor is padded too, as llama.cpp's own writer does.
    pub fn build(&self) -> Vec<u8> {
        let mut file = self.magic.to_vec();
        file.extend(self.version.to_le_bytes());
        file.extend(self.n_tensors.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        file.extend(self.n_entries.unwrap_or(self.entries.len() as u64).to_le_bytes());
        self.entries.iter().for_each(|entry| file.extend(entry));
        let mut data = Vec::new();
        for tensor in &self.tensors {
            file.extend(string(&tensor.name));
            file.extend(tensor.n_dims.unwrap_or(tensor.ne.len() as u32).to_le_bytes());
            tensor.ne.iter().for_each(|n| file.extend(n.to_le_bytes()));
            file.extend(tensor.type_id.to_le_bytes());
            file.extend(tensor.offset.unwrap_or(data.len() as u64).to_le_bytes());
            data.extend(&tensor.data);
            pad(&mut data, self.alignment);
        }
        if !self.tensors.is_empty() {
            pad(&mut file, self.alignment);
        }
        file.extend(data);
        file
    }

    fn last(&mut self) -> &mut Tensor {
        self.tensors.last_mut().expect("add a tensor first")
    }
}

/// An array's bytes after its value type: element type, length, elements.
pub fn array(elem_type_id: u32, len: usize, elements: impl IntoIterator<Item = u8>) -> Vec<u8> {
    let mut bytes = elem_type_id.to_le_bytes().to_vec();
    bytes.extend((len as u64).to_le_bytes());
    bytes.extend(elements);
    bytes
}

/// A string's bytes: length, text.
pub fn string(text: &[u8]) -> Vec<u8> {
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text);
    bytes
}

fn pad(bytes: &mut Vec<u8>, alignment: u64) {
    if alignment.is_power_of_two() && alignment <= 1 << 21 {
        bytes.resize(bytes.len().next_multiple_of(alignment as usize), 0);
    }
}
