//! Paths that name no usable model: each its own error, with the path, the expected and the got.

use std::fs;
use std::path::Path;

use insta::assert_snapshot;
use test_support::gguf::GgufBuilder;
use weight_loader::{LoadError, ModelFile};

/// The message of opening and parsing `path`, with the temporary directory cut out.
fn refusal(dir: &Path, path: &Path) -> (LoadError, String) {
    let result = ModelFile::open(path).and_then(|file| file.gguf().map(drop));
    let error = result.expect_err("opened");
    let message = error.to_string().replace(&dir.display().to_string(), "DIR");
    (error, message)
}

#[test]
fn a_missing_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (error, message) = refusal(dir.path(), &dir.path().join("no.gguf"));
    assert!(matches!(error, LoadError::NotFound { .. }));
    assert_snapshot!(message, @r#"model "DIR/no.gguf": no such file"#);
}

#[test]
fn a_directory_is_no_model() {
    let dir = tempfile::tempdir().unwrap();
    let (error, message) = refusal(dir.path(), dir.path());
    assert!(matches!(error, LoadError::NotAFile { .. }));
    assert_snapshot!(message, @r#"model "DIR": expected a .gguf file, got a directory"#);
}

#[test]
fn an_empty_file_is_no_model() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("empty.gguf");
    fs::write(&path, b"").unwrap();
    let (error, message) = refusal(dir.path(), &path);
    assert!(matches!(error, LoadError::Empty { .. }));
    assert_snapshot!(message, @r#"model "DIR/empty.gguf": expected a .gguf file, got an empty one"#);
}

#[test]
fn a_foreign_file_is_no_model() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    fs::write(&path, b"\x08\x00\x00\x00\x00\x00\x00\x00{\"a\":{}}").unwrap();
    let (error, message) = refusal(dir.path(), &path);
    assert!(matches!(error, LoadError::Gguf { .. }));
    assert_snapshot!(message, @r#"model "DIR/model.safetensors": not a GGUF file: begins with "\x08\x00\x00\x00", expected "GGUF""#);
}

#[test]
fn a_truncated_file_is_refused_by_name_of_the_first_tensor_that_is_cut() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cut.gguf");
    let file = GgufBuilder::new()
        .tensor_f32("a", &[8], &[0.0; 8])
        .tensor_f32("b", &[8], &[0.0; 8])
        .tensor_f32("c", &[8], &[0.0; 8])
        .build();
    fs::write(&path, &file[..file.len() - 40]).unwrap();
    let (_, message) = refusal(dir.path(), &path);
    assert_snapshot!(message, @r#"model "DIR/cut.gguf": tensor "b": needs 32 bytes at offset 160, file has 184"#);
}

#[cfg(unix)]
#[test]
fn a_path_that_cannot_be_followed_is_unreadable() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("loop.gguf");
    std::os::unix::fs::symlink(&path, &path).unwrap();
    let (error, message) = refusal(dir.path(), &path);
    assert!(matches!(error, LoadError::Unreadable { .. }));
    assert!(message.starts_with(r#"model "DIR/loop.gguf": cannot be opened: "#), "{message}");
}

#[cfg(unix)]
#[test]
fn a_file_without_read_permission_is_unreadable() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("secret.gguf");
    fs::write(&path, b"GGUF").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
    if fs::File::open(&path).is_ok() {
        eprintln!("skipped: this user may read everything");
        return;
    }
    let (error, message) = refusal(dir.path(), &path);
    assert!(matches!(error, LoadError::Unreadable { .. }));
    assert!(message.starts_with(r#"model "DIR/secret.gguf": cannot be opened: "#), "{message}");
}

#[cfg(unix)]
#[test]
fn a_named_pipe_is_refused_without_waiting_for_a_writer() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pipe.gguf");
    let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
    assert!(made.success());
    let (error, message) = refusal(dir.path(), &path);
    assert!(matches!(error, LoadError::NotAFile { .. }));
    assert_snapshot!(message, @r#"model "DIR/pipe.gguf": expected a .gguf file, got a device, pipe or socket"#);
}

#[cfg(unix)]
#[test]
fn a_device_is_no_model() {
    let (error, message) = refusal(Path::new("DIR"), Path::new("/dev/zero"));
    assert!(matches!(error, LoadError::NotAFile { .. }));
    assert_snapshot!(message, @r#"model "/dev/zero": expected a .gguf file, got a device, pipe or socket"#);
}
