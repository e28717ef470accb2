//! What a file says, apart from the environment of this process; precedence is tested on the whole process too.

use super::*;
use crate::cli::{DeviceChoice, LogFormat};

/// A table with a flag of every kind, those that `serve` happens to lack included.
fn command() -> Command {
    Cli::command()
        .arg(Arg::new("share").long("share").value_parser(clap::value_parser!(f32)))
        .arg(Arg::new("peers").long("peer").action(ArgAction::Append).value_parser(clap::value_parser!(u16)))
}

fn values(text: &str) -> Vec<(String, Vec<String>)> {
    let defaults = defaults(text, "w.toml", &command()).unwrap_or_else(|faults| panic!("{faults}"));
    defaults.into_iter().map(|default| (default.id, default.values)).collect()
}

fn faults(text: &str) -> String {
    defaults(text, "w.toml", &command()).expect_err("faults").to_string()
}

fn cli(text: &str, args: &[&str]) -> Cli {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.toml");
    std::fs::write(&path, text).unwrap();
    let words = ["worker-orcd".into(), "--config".into(), path.into_os_string()];
    parse(words.into_iter().chain(args.iter().map(OsString::from))).unwrap_or_else(|refused| panic!("{refused:?}"))
}

#[test]
fn reads_a_value_of_every_kind() {
    let text = "
        model = 'a b.gguf'          # a path
        port = 9_000                # an integer, as TOML may write it
        kv-cache-mb = 0x10
        no-prefix-reuse = true
        device = \"cpu\"
        share = 1
        peer = [1, 2]
    ";
    let expected = [
        ("model", vec!["a b.gguf"]),
        ("port", vec!["9000"]),
        ("kv_cache_mb", vec!["16"]),
        ("no_prefix_reuse", vec!["true"]),
        ("device", vec!["cpu"]),
        ("share", vec!["1"]),
        ("peers", vec!["1", "2"]),
    ];
    let expected = expected.map(|(id, values)| (id.to_owned(), values.into_iter().map(str::to_owned).collect()));
    assert_eq!(values(text), expected);
    assert_eq!(
        values("share = 0.5\npeer = 7"),
        [("share".to_owned(), vec!["0.5".to_owned()]), ("peers".to_owned(), vec!["7".to_owned()])]
    );
    assert_eq!(values("# nothing"), []);
}

#[test]
fn every_flag_of_serve_is_a_key() {
    for arg in Cli::command().get_arguments() {
        let flag = arg.get_long().unwrap();
        let is_key = !matches!(flag, "help" | "version" | FLAG);
        // A table is the value of no flag, so the answer tells whether the key was known.
        let message = faults(&format!("{flag} = {{}}"));
        assert_eq!(message.contains(", got a table"), is_key, "{message}");
        assert_eq!(is_key, may_be_set(arg), "{flag}");
    }
}

#[test]
fn the_file_gives_defaults_and_a_flag_wins() {
    let text = "port = 7\nqueue-limit = 3\nno-prefix-reuse = true\ndevice = 'cpu'\nhost = 'localhost'\nalias = 'poet'\n\
                log-format = 'json'\nmax-seqs = 2";
    let serve = cli(text, &[]).serve;
    assert_eq!((serve.worker.port, serve.worker.queue_limit, serve.limits.max_seqs), (7, 3, Some(2)));
    assert!(serve.limits.no_prefix_reuse);
    assert_eq!((serve.device.device, serve.log.log_format), (DeviceChoice::Cpu, LogFormat::Json));
    assert_eq!((serve.worker.host.to_string().as_str(), serve.worker.alias.as_deref()), ("127.0.0.1", Some("poet")));

    let flags = ["--port", "8", "--queue-limit=4", "--device", "auto", "--alias", "prose", "--max-seqs", "5"];
    let serve = cli(text, &flags).serve;
    assert_eq!((serve.worker.port, serve.worker.queue_limit, serve.limits.max_seqs), (8, 4, Some(5)));
    assert_eq!((serve.device.device, serve.worker.alias.as_deref()), (DeviceChoice::Auto, Some("prose")));
    assert!(!cli("no-prefix-reuse = false", &[]).serve.limits.no_prefix_reuse);
    assert!(cli("no-prefix-reuse = false", &["--no-prefix-reuse"]).serve.limits.no_prefix_reuse);
}

#[test]
fn serve_by_its_name_reads_the_file_too_and_the_others_do_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.toml");
    std::fs::write(&path, "port = 7").unwrap();
    let path = path.to_str().unwrap();
    let parsed = parse(["worker-orcd", "serve", "--config", path].map(OsString::from));
    let Ok(Cli { command: Some(crate::cli::Command::Serve(args)), .. }) = parsed else { panic!("serve") };
    assert_eq!((args.worker.port, args.config.unwrap().to_str()), (7, Some(path)));
    let refused = parse(["worker-orcd", "generate", "x", "--config", path].map(OsString::from));
    assert!(matches!(refused, Err(Refused::CommandLine(_))));
}

#[test]
fn names_line_key_expected_and_got_of_every_fault() {
    let text = "prot = 1\nport = 'x'\ndevice = 'tpu'\n\nno-prefix-reuse = 1\nmax-seqs = 1.5\nalias = 3\nhost = 'nowhere'\n\
                queue-limit = 999999\nkv-cache-mb = -1\npeer = [1, 'two']\nconfig = 'other.toml'\nhelp = true\nalias2 = \"\"\n\
                log-format = 7\nalias-x.y = 1\nworker-id = ''";
    insta::assert_snapshot!(faults(text));
}

#[test]
fn what_is_no_toml_is_refused_with_its_line() {
    assert!(faults("port = 1\nport = 2").starts_with("w.toml:2: not TOML: "), "{}", faults("port = 1\nport = 2"));
    assert!(faults("a\n").starts_with("w.toml:1: not TOML: "), "{}", faults("a\n"));
    let deep = format!("port = {}1", "[".repeat(100_000));
    assert!(faults(&deep).starts_with("w.toml:1: not TOML: "));
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let config = |path: &Path| {
        let words = ["worker-orcd".into(), "--config".into(), path.as_os_str().to_owned()];
        let Err(Refused::Config(error)) = parse(words) else { panic!("not refused") };
        format!("{error:#}")
    };
    let missing = folder.path().join("missing.toml");
    assert!(config(&missing).starts_with(&format!("--config {}: cannot be read: ", missing.display())));
    let large = folder.path().join("large.toml");
    std::fs::write(&large, "#".repeat(MAX_CONFIG_BYTES as usize + 1)).unwrap();
    assert!(config(&large).ends_with("has more than 1048576 bytes, the limit"), "{}", config(&large));
}
