//! Tensors against what the architecture wants, and what loading gives.

use std::fs;

use gguf_parser::TensorType;
use insta::assert_snapshot;
use proptest::prelude::*;
use test_support::gguf::GgufBuilder;
use weight_loader::{LoadError, ModelFile, TensorFault, TensorSpec, Weights, load};

const F32_ONLY: &[TensorType] = &[TensorType::F32];
const MATRIX: &[TensorType] = &[TensorType::F32, TensorType::F16, TensorType::Q8_0];

fn spec(name: &str, shape: &[u64], types: &'static [TensorType]) -> TensorSpec {
    TensorSpec { name: name.into(), shape: shape.into(), types, optional: false }
}

/// Loads `bytes` as a built-in model, which needs a `'static` that a test may leak.
fn load_bytes(bytes: Vec<u8>, specs: &[TensorSpec]) -> Result<Weights, LoadError> {
    let file = ModelFile::from_static(bytes.leak(), "model.gguf");
    load(&file, &file.gguf()?, specs, &mut |_| {})
}

fn two_tensors() -> GgufBuilder {
    GgufBuilder::new().tensor_f32("output_norm.weight", &[4], &[1.0, 2.0, 3.0, 4.0]).tensor_f16(
        "output.weight",
        &[3, 4],
        &[0.5; 12],
    )
}

fn two_specs() -> Vec<TensorSpec> {
    vec![spec("output_norm.weight", &[4], F32_ONLY), spec("output.weight", &[3, 4], MATRIX)]
}

#[test]
fn gives_tensors_by_name() {
    let weights = load_bytes(two_tensors().build(), &two_specs()).unwrap();
    let norm = weights.tensor("output_norm.weight").unwrap();
    assert_eq!((norm.ty, &norm.shape[..]), (TensorType::F32, &[4][..]));
    assert_eq!(norm.bytes(), [1f32, 2.0, 3.0, 4.0].map(f32::to_le_bytes).as_flattened());
    assert_eq!(weights.tensor("output.weight").unwrap().bytes().len(), 24);
    assert!(weights.tensor("token_embd.weight").is_none());
    assert_eq!(weights.n_bytes(), 16 + 24);
    assert_eq!(weights.iter().map(|tensor| &*tensor.name).collect::<Vec<_>>(), ["output_norm.weight", "output.weight"]);
}

/// Bytes of the pages of `memory`'s mapping that this process holds.
#[cfg(target_os = "linux")]
fn resident_bytes(memory: &[u8]) -> u64 {
    let maps = fs::read_to_string("/proc/self/smaps").unwrap();
    let address = memory.as_ptr() as u64;
    let holds = |line: &&str| {
        let range = line.split(' ').next().and_then(|range| range.split_once('-'));
        let parse = |hex| u64::from_str_radix(hex, 16);
        range.is_some_and(
            |(from, to)| matches!((parse(from), parse(to)), (Ok(from), Ok(to)) if (from..to).contains(&address)),
        )
    };
    let rss = maps.lines().skip_while(|line| !holds(line)).find_map(|line| line.strip_prefix("Rss:")).unwrap();
    rss.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024
}

#[cfg(target_os = "linux")]
#[test]
fn pages_that_lie_within_a_tensor_are_given_back_and_read_again() {
    // Larger than the pages of any system, and no multiple of them.
    let shapes = [[300, 1000], [200, 1000]];
    let values = |n: u64| (0..n).map(|i| i as f32).collect::<Vec<_>>();
    let names = ["blk.0.ffn_up.weight", "blk.0.ffn_gate.weight"];
    let mut builder = GgufBuilder::new();
    for (name, shape) in names.iter().zip(shapes) {
        builder = builder.tensor_f32(name, &shape, &values(shape[0] * shape[1]));
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    fs::write(&path, builder.build()).unwrap();
    let file = ModelFile::open(&path).unwrap();
    let specs = [0, 1].map(|i| spec(names[i], &shapes[i], F32_ONLY));
    let weights = load(&file, &file.gguf().unwrap(), &specs, &mut |_| {}).unwrap();
    let [first, second] = names.map(|name| weights.tensor(name).unwrap());

    let of_both = first.bytes().len() as u64 + second.bytes().len() as u64;
    let before = resident_bytes(first.bytes());
    assert!(before >= of_both, "loading brings {of_both} bytes in, {before} are here");
    first.give_back_pages();
    let page = 65_536;
    let (given_back, whole) = (before - resident_bytes(first.bytes()), first.bytes().len() as u64);
    assert!((whole - 2 * page..=whole).contains(&given_back), "{given_back} of {whole} bytes are given back");

    let is_whole =
        |bytes: &[u8]| bytes.as_chunks().0.iter().enumerate().all(|(i, x)| f32::from_le_bytes(*x) == i as f32);
    assert!(is_whole(first.bytes()) && is_whole(second.bytes()));
    assert!(resident_bytes(first.bytes()) >= before, "what was looked at is here again");
}

#[test]
fn tensors_outlive_the_file_and_the_directory() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    fs::write(&path, two_tensors().build()).unwrap();
    let tensor = {
        let file = ModelFile::open(&path).unwrap();
        let weights = load(&file, &file.gguf().unwrap(), &two_specs(), &mut |_| {}).unwrap();
        weights.tensor("output_norm.weight").unwrap()
    };
    fs::remove_file(&path).unwrap();
    assert_eq!(tensor.bytes()[..4], 1f32.to_le_bytes());
}

#[test]
fn weights_can_be_shared_between_threads() {
    fn shareable<T: Clone + Send + Sync + 'static>() {}
    shareable::<Weights>();
    shareable::<weight_loader::Tensor>();
    shareable::<ModelFile>();
}

#[test]
fn names_every_fault_at_once() {
    let file = GgufBuilder::new()
        .tensor_f32("output_norm.weight", &[5], &[0.0; 5])
        .tensor("output.weight", TensorType::Q4_0.id(), &[3, 32], vec![0; 54])
        .tensor_f16("blk.0.attn_q.weight", &[2, 4], &[0.0; 8])
        .tensor_f32("rope_freqs.weight", &[2], &[0.0; 2])
        .tensor_f32("blk.0.attn_q.bias", &[4], &[0.0; 4]);
    let specs = [
        spec("token_embd.weight", &[3, 4], MATRIX),
        spec("blk.0.attn_q.weight", &[4, 4], F32_ONLY),
        spec("output_norm.weight", &[4], F32_ONLY),
        spec("output.weight", &[3, 32], MATRIX),
        spec("blk.1.attn_norm.weight", &[4], F32_ONLY),
    ];
    let error = load_bytes(file.build(), &specs).unwrap_err();
    assert_snapshot!(error, @r#"
    model "model.gguf": 8 faults in its tensors
      tensor "token_embd.weight": missing, expected F32, F16 or Q8_0 [3, 4]
      tensor "blk.0.attn_q.weight": expected shape [4, 4], got [2, 4]
      tensor "blk.0.attn_q.weight": expected type F32, got F16
      tensor "output_norm.weight": expected shape [4], got [5]
      tensor "output.weight": expected type F32, F16 or Q8_0, got Q4_0
      tensor "blk.1.attn_norm.weight": missing, expected F32 [4]
      tensor "rope_freqs.weight": superfluous, got F32 [2]
      tensor "blk.0.attn_q.bias": superfluous, got F32 [4]
    "#);
    let LoadError::Tensors { faults, .. } = error else { panic!("{error}") };
    assert_eq!(faults[0], TensorFault::Missing { name: "token_embd.weight".into(), shape: vec![3, 4], types: MATRIX });
}

#[test]
fn one_fault_fits_on_one_line() {
    let error = load_bytes(two_tensors().build(), &two_specs()[..1]).unwrap_err();
    assert_snapshot!(error, @r#"model "model.gguf": tensor "output.weight": superfluous, got F16 [3, 4]"#);
}

#[test]
fn a_transposed_matrix_is_misshapen() {
    let mut specs = two_specs();
    specs[1].shape.reverse();
    let error = load_bytes(two_tensors().build(), &specs).unwrap_err();
    assert_snapshot!(error, @r#"model "model.gguf": tensor "output.weight": expected shape [4, 3], got [3, 4]"#);
}

#[test]
fn an_optional_tensor_may_be_absent_and_is_checked_when_present() {
    let mut specs = two_specs();
    specs.push(TensorSpec { optional: true, ..spec("rope_freqs.weight", &[2], F32_ONLY) });
    assert!(load_bytes(two_tensors().build(), &specs).unwrap().tensor("rope_freqs.weight").is_none());
    let good = two_tensors().tensor_f32("rope_freqs.weight", &[2], &[1.0; 2]);
    assert!(load_bytes(good.build(), &specs).unwrap().tensor("rope_freqs.weight").is_some());
    let bad = two_tensors().tensor_f32("rope_freqs.weight", &[3], &[1.0; 3]);
    let error = load_bytes(bad.build(), &specs).unwrap_err();
    assert_snapshot!(error, @r#"model "model.gguf": tensor "rope_freqs.weight": expected shape [2], got [3]"#);
}

#[test]
fn progress_grows_to_the_total_and_names_every_tensor() {
    // Larger than a piece, so that one tensor gives several events.
    let large = vec![0; 40 << 20];
    let file = two_tensors().tensor("token_embd.weight", TensorType::I8.id(), &[40, 1 << 20], large);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    fs::write(&path, file.build()).unwrap();
    let mut specs = two_specs();
    specs.push(spec("token_embd.weight", &[40, 1 << 20], &[TensorType::I8]));

    let file = ModelFile::open(&path).unwrap();
    let mut events = Vec::new();
    let weights = load(&file, &file.gguf().unwrap(), &specs, &mut |progress| {
        events.push((progress.done_bytes, progress.total_bytes, progress.tensor.to_owned()));
    })
    .unwrap();

    let total = 16 + 24 + (40 << 20);
    assert_eq!(weights.n_bytes(), total);
    assert!(events.windows(2).all(|pair| pair[0].0 < pair[1].0), "{events:?}");
    assert!(events.iter().all(|event| event.1 == total));
    assert_eq!(events.last().unwrap().0, total);
    assert!(events.len() >= 5, "{events:?}");
    for name in ["output_norm.weight", "output.weight", "token_embd.weight"] {
        assert!(events.iter().any(|event| event.2 == name), "{name}: {events:?}");
    }
}

/// After loading, a truncated file means SIGBUS; while loading, the kernel can still say so.
#[cfg(target_os = "linux")]
#[test]
fn a_file_that_is_cut_while_it_loads_is_an_error() {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(['.', '-']).map_while(|number| number.parse::<u32>().ok());
    if (numbers.next(), numbers.next()) < (Some(5), Some(14)) {
        eprintln!("skipped: Linux {release} does not know MADV_POPULATE_READ");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    fs::write(&path, GgufBuilder::new().tensor("t", TensorType::I8.id(), &[1 << 16], vec![0; 1 << 16]).build())
        .unwrap();
    let file = ModelFile::open(&path).unwrap();
    let gguf = file.gguf().unwrap();
    fs::File::options().write(true).open(&path).unwrap().set_len(4096).unwrap();
    let error = load(&file, &gguf, &[spec("t", &[1 << 16], &[TensorType::I8])], &mut |_| {}).unwrap_err();
    assert!(matches!(error, LoadError::Read { .. }), "{error}");
    let message = error.to_string();
    assert!(
        message
            .contains(r#"tensor "t": reading 65536 bytes at offset 64 failed (was the file cut, or its disk lost?): "#),
        "{message}"
    );
}

#[test]
fn a_model_without_tensors_loads_without_an_event() {
    let file = ModelFile::from_static(GgufBuilder::new().build().leak(), "empty");
    let weights = load(&file, &file.gguf().unwrap(), &[], &mut |progress| panic!("{progress:?}")).unwrap();
    assert_eq!((weights.iter().len(), weights.n_bytes()), (0, 0));
}

proptest! {
    /// Whatever the file has and the architecture wants: every difference is one fault, and there are no others.
    #[test]
    fn faults_are_exactly_the_differences(
        have in prop::collection::btree_map(0..6u8, (1..3u64, any::<bool>()), 0..6),
        want in prop::collection::btree_map(0..6u8, (1..3u64, any::<bool>(), any::<bool>()), 0..6),
    ) {
        let types = |f16: bool| if f16 { &[TensorType::F16] } else { F32_ONLY };
        let mut file = GgufBuilder::new();
        for (name, &(n, f16)) in &have {
            let data = vec![0; 4 * n as usize];
            file = match f16 {
                true => file.tensor(name.to_string(), 1, &[2 * n], data),
                false => file.tensor(name.to_string(), 0, &[n], data),
            };
        }
        let specs: Vec<TensorSpec> = want
            .iter()
            .map(|(name, &(n, f16, optional))| {
                let n = if f16 { 2 * n } else { n };
                TensorSpec { optional, ..spec(&name.to_string(), &[n], types(f16)) }
            })
            .collect();
        let mut expected = have.keys().filter(|name| !want.contains_key(name)).count();
        for (name, &(n, f16, optional)) in &want {
            expected += match have.get(name) {
                None => usize::from(!optional),
                Some(&(have_n, have_f16)) => {
                    let len = |n: u64, f16: bool| if f16 { 2 * n } else { n };
                    usize::from(len(have_n, have_f16) != len(n, f16)) + usize::from(have_f16 != f16)
                }
            };
        }
        match load_bytes(file.build(), &specs) {
            Ok(weights) => {
                prop_assert_eq!(expected, 0);
                prop_assert_eq!(weights.iter().len(), have.len());
            }
            Err(LoadError::Tensors { faults, .. }) => prop_assert_eq!(faults.len(), expected),
            Err(other) => prop_assert!(false, "{}", other),
        }
    }
}
