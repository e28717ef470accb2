//! Any bytes: parse, and use everything that was parsed. Nothing may panic, hang or allocate out of proportion.
#![no_main]

use gguf_parser::{Gguf, Value};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|file: &[u8]| {
    let Ok(gguf) = Gguf::parse(file) else { return };
    std::hint::black_box(gguf.listing().to_string());
    for (key, value) in gguf.metadata.iter() {
        assert!(gguf.metadata.get(key).is_some());
        walk(value);
    }
    for tensor in &gguf.tensors {
        assert!(gguf.tensor(tensor.name).is_some());
        assert_eq!(tensor.bytes(file).len() as u64, tensor.n_bytes);
        assert!(tensor.offset.is_multiple_of(gguf.alignment));
    }
});

fn walk(value: &Value<'_>) {
    let Value::Array(array) = value else { return };
    assert_eq!(array.values().count(), array.len());
    array.values().for_each(|element| walk(&element));
    if let Ok(strings) = array.strings() {
        assert_eq!(strings.count(), array.len());
    }
    if let Ok(integers) = array.u32s() {
        assert_eq!(integers.count(), array.len());
    }
}
