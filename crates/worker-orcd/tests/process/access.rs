//! Keys, origins and names of the worker, from the command line to the socket.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use crate::harness::{Files, PATIENCE, Worker, command, error_of, run, stdout_of};

const KEY: &str = "sk-secret-0123456789";
const OTHER_KEY: &str = "sk-of-the-file";

/// The status of `GET path` with these header lines.
fn status(worker: &Worker, path: &str, headers: &str) -> u16 {
    let mut stream = TcpStream::connect(worker.address).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let request = format!("GET {path} HTTP/1.1\r\nConnection: close\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).expect("it reads");
    let mut reply = String::new();
    stream.read_to_string(&mut reply).expect("an answer");
    reply.split(' ').nth(1).expect("a status").parse().expect("a number")
}

fn with_key(worker: &Worker, key: &str) -> u16 {
    status(worker, "/props", &format!("Host: localhost\r\nAuthorization: Bearer {key}\r\n"))
}

#[test]
fn keys_come_from_flags_a_file_and_the_environment_and_no_log_has_them() {
    let files = Files::new();
    let file = files.write("keys", format!("# of the team\n\n  {OTHER_KEY}  \n").as_bytes());
    let args =
        ["--port", "0", "--api-key", KEY, "--api-key", "sk-third", "--api-key-file", &file, "--log-level", "trace"];
    let worker = Worker::spawn(command(&args).env("WORKER_ORCD_API_KEY", "sk-not-used"));
    worker.wait_for("/ready", 200);
    for key in [KEY, "sk-third", OTHER_KEY] {
        assert_eq!(with_key(&worker, key), 200, "{key}");
    }
    // The flag wins over its variable.
    for key in ["sk-not-used", "sk-wrong-0123456789", ""] {
        assert_eq!(with_key(&worker, key), 401, "{key}");
    }
    worker.signal("TERM");
    let (_, log) = worker.end();
    for secret in [KEY, "sk-third", OTHER_KEY, "sk-not-used", "sk-wrong-0123456789"] {
        assert!(!log.contains(secret), "{secret} in {log}");
    }
    let config = files.write("worker.toml", format!("api-key = ['{KEY}', '{OTHER_KEY}']\n").as_bytes());
    let worker = Worker::ready(&["--config", &config]);
    assert_eq!([KEY, OTHER_KEY, "sk-third"].map(|key| with_key(&worker, key)), [200, 200, 401]);
    let worker = Worker::spawn(command(&["--port", "0"]).env("WORKER_ORCD_API_KEY", KEY));
    worker.wait_for("/ready", 200);
    assert_eq!((with_key(&worker, KEY), with_key(&worker, OTHER_KEY)), (200, 401));
}

#[test]
fn no_help_and_no_fault_shows_a_key() {
    let output = command(&["--api-key", KEY, "--help"]).env("WORKER_ORCD_API_KEY", OTHER_KEY).output().unwrap();
    let help = stdout_of(&output);
    assert!(help.contains("--api-key <KEY>") && !help.contains(KEY) && !help.contains(OTHER_KEY));
    let files = Files::new();
    let config =
        files.write("worker.toml", format!("api-key = ['{KEY}']\ncors-origin = ['https://a.example']\n").as_bytes());
    assert!(!stdout_of(&run(&["--config", &config, "--help"])).contains(KEY));
    for args in [
        &["--api-key", KEY, "--port", "many"][..],
        &["--api-key", KEY, "--no-such-flag"],
        &["generate", "x", "--api-key", KEY],
        &["--port", "0", "--api-key", "sk-secret 0123456789"],
        &["--port", "0", "--api-key", KEY, "--cors-origin", "app.example"],
    ] {
        let output = run(args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && !stderr.contains("0123456789"), "{stderr}");
    }
}

#[test]
fn what_is_no_key_no_file_of_keys_and_no_origin_is_refused_at_the_start() {
    let files = Files::new();
    let file = |name: &str, bytes: &[u8]| files.write(name, bytes);
    let missing = files.path("missing").to_str().unwrap().to_owned();
    let mut errors = String::new();
    for args in [
        ["--api-key", ""],
        ["--api-key", "two words"],
        ["--api-key-file", &missing],
        ["--api-key-file", &file("empty", b"")],
        ["--api-key-file", &file("comments", b"# none\n\n  \n# yet\n")],
        ["--api-key-file", &file("spaces", b"# first\ngood\ntwo words\n")],
        ["--api-key-file", &file("binary", b"\xff\xfe")],
        ["--api-key-file", &file("many", "k\n".repeat(257).as_bytes())],
        ["--cors-origin", "app.example"],
        ["--cors-origin", "https://app.example/"],
    ] {
        let error = error_of(&run(&[&args[..], &["--port", "0"]].concat()));
        errors += &format!("{}\n", files.unnamed(&error));
    }
    insta::assert_snapshot!(errors);
}

/// What a worker with these flags says of itself until it is ready.
fn log_of(args: &[&str]) -> String {
    let worker = Worker::ready(args);
    worker.signal("TERM");
    worker.end().1
}

#[test]
fn a_public_address_without_a_key_is_warned_of() {
    let warning = "is no loopback address and there is no --api-key";
    assert!(log_of(&["--host", "0.0.0.0"]).contains(warning));
    assert!(!log_of(&["--host", "0.0.0.0", "--api-key", KEY]).contains(warning));
    assert!(!log_of(&[]).contains(warning));
    assert!(log_of(&["--cors-origin", "*"]).contains("--cors-origin *: every web page"));
}

#[test]
fn a_worker_of_this_machine_answers_to_no_foreign_name() {
    let host = |worker: &Worker, host: &str| status(worker, "/health", &format!("Host: {host}\r\n"));
    let worker = Worker::ready(&["--cors-origin", "https://app.example,http://other.example:3000"]);
    let expected =
        [("localhost:1", 200), ("127.0.0.1", 200), ("app.example", 200), ("other.example", 200), ("evil.example", 403)];
    for (name, status) in expected {
        assert_eq!(host(&worker, name), status, "{name}");
    }
    let worker = Worker::ready(&["--allowed-host", "worker.lan"]);
    assert_eq!((host(&worker, "worker.lan:80"), host(&worker, "evil.example")), (200, 403));
    for args in [&["--allowed-host", "*"][..], &["--host", "0.0.0.0"]] {
        assert_eq!(host(&Worker::ready(args), "evil.example"), 200, "{args:?}");
    }
    let worker = Worker::ready(&["--host", "0.0.0.0", "--allowed-host", "worker.lan"]);
    assert_eq!((host(&worker, "worker.lan"), host(&worker, "evil.example")), (200, 403));
}
