//! Golden files, read from `golden/data`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;

/// One model and what the reference computes on it.
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) model: PathBuf,
    pub(crate) n_layers: usize,
    /// Positions of the first run whose steps are known, all above 0.
    pub(crate) probe_positions: Vec<usize>,
    pub(crate) largest: BTreeMap<String, f64>,
    pub(crate) runs: Vec<Run>,
    index: Vec<Entry>,
    values: Vec<f32>,
}

/// A sequence whose logits are known at every position.
#[derive(Deserialize, Clone)]
pub(crate) struct Run {
    pub(crate) tokens: Vec<u32>,
    /// The first so many are the prompt; the reference chose the others, greedily.
    pub(crate) n_prompt: usize,
}

#[derive(Deserialize)]
struct Document {
    case: String,
    model: String,
    n_layers: usize,
    probe_positions: Vec<usize>,
    largest: BTreeMap<String, f64>,
    runs: Vec<Run>,
    values: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    name: String,
    shape: Vec<usize>,
    offset: usize,
}

impl Case {
    /// Reads the case of this name.
    pub(crate) fn read(name: &str) -> Case {
        let data = test_support::checkout().join("crates/transformer/golden/data");
        let document: Document =
            serde_json::from_slice(&std::fs::read(data.join(format!("{name}.json"))).unwrap()).unwrap();
        let bytes = std::fs::read(data.join(format!("{name}.f32"))).unwrap();
        Case {
            name: document.case,
            model: data.join(document.model),
            n_layers: document.n_layers,
            probe_positions: document.probe_positions,
            largest: document.largest,
            runs: document.runs,
            index: document.values,
            values: bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        }
    }

    /// Every case there is.
    pub(crate) fn all() -> Vec<Case> {
        let data = test_support::checkout().join("crates/transformer/golden/data");
        let mut names: Vec<String> = std::fs::read_dir(data)
            .unwrap()
            .filter_map(|entry| Some(entry.unwrap().file_name().to_str()?.strip_suffix(".json")?.to_owned()))
            .collect();
        names.sort();
        assert_eq!(names.len(), 11, "ten tiny models and the haiku model: {names:?}");
        names.iter().map(|name| Case::read(name)).collect()
    }

    /// Values by name: `(row width, all rows)`.
    pub(crate) fn values(&self, name: &str) -> (usize, &[f32]) {
        let entry = self.index.iter().find(|e| e.name == name).unwrap_or_else(|| panic!("{}: no {name}", self.name));
        let [rows, width] = entry.shape[..] else { panic!("{name}: {:?}", entry.shape) };
        (width, &self.values[entry.offset..][..rows * width])
    }

    /// The reference's logits of a run. `[n_tokens, n_vocab]`
    pub(crate) fn logits(&self, run: usize) -> &[f32] {
        self.values(&format!("logits.{run}")).1
    }

    /// The model's file.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        std::fs::read(&self.model).unwrap()
    }
}
