//! Starting the binary, talking to it over a socket, and never waiting for ever.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Nothing in these tests takes longer, however busy the machine is.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The binary, in an environment of its own, so that nobody's variables reach it but those of the GPU's driver.
///
/// The one that was built with these tests, or that `WORKER_ORCD_BIN` names. Where the tests were carried to another machine,
/// it has no model of its own, and is given the file.
pub(crate) fn command(args: &[&str]) -> Command {
    let named = std::env::var_os("WORKER_ORCD_BIN").unwrap_or_else(|| env!("CARGO_BIN_EXE_worker-orcd").into());
    let mut command = Command::new(named);
    command.env_clear().args(args);
    if device() == "cuda" {
        // Where it finds the driver, and kernels that the driver has compiled before.
        let is_of_driver = |name: &str| ["HOME", "LD_LIBRARY_PATH"].contains(&name) || name.starts_with("CUDA_");
        command.envs(std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(is_of_driver)));
    }
    if std::env::var_os("WORKER_TEST_ROOT").is_some() {
        let model = test_support::checkout().join("models/haiku/haiku-qwen2-5.8m-f16.gguf");
        command.env("WORKER_ORCD_MODEL", model);
    }
    command
}

/// Where a worker is to compute whose test is about the device: `cpu`, or what `WORKER_TEST_DEVICE` says.
pub(crate) fn device() -> String {
    std::env::var("WORKER_TEST_DEVICE").unwrap_or_else(|_| "cpu".into())
}

/// Runs the binary to its end with nothing on standard input.
pub(crate) fn run(args: &[&str]) -> Output {
    run_with(args, "")
}

/// Runs the binary to its end with `input` on standard input.
pub(crate) fn run_with(args: &[&str], input: &str) -> Output {
    let mut child = command(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    let mut stdin = child.stdin.take().expect("piped");
    let input = input.to_owned();
    let writer = std::thread::spawn(move || {
        // A command that does not read its input closes the pipe.
        let _ = stdin.write_all(input.as_bytes());
    });
    let output = child.wait_with_output().expect("it ends");
    writer.join().expect("writing does not panic");
    output
}

/// Standard output of a run that must succeed.
pub(crate) fn stdout_of(output: &Output) -> String {
    assert!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

/// The one plain error of a run that must fail with exit status 1.
pub(crate) fn error_of(output: &Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    plain_error(&stderr)
}

/// The line that begins with `error: `; there is exactly one, and no panic.
pub(crate) fn plain_error(stderr: &str) -> String {
    assert!(!stderr.contains("panicked") && !stderr.contains("RUST_BACKTRACE"), "{stderr}");
    let from = stderr.find("error: ").unwrap_or_else(|| panic!("no error in {stderr:?}"));
    assert_eq!(stderr.matches("error: ").count(), 1, "{stderr}");
    stderr[from..].trim_end().to_owned()
}

/// A worker that serves; killed when dropped.
pub(crate) struct Worker {
    child: Child,
    /// Where it listens.
    pub(crate) address: SocketAddr,
    stderr: Option<JoinHandle<String>>,
}

impl Worker {
    /// Starts it on a free port and waits for the line that names the port.
    pub(crate) fn start(args: &[&str]) -> Self {
        Self::spawn(command(args).args(["--port", "0"]))
    }

    /// Starts it on a free port and waits until it takes work.
    pub(crate) fn ready(args: &[&str]) -> Self {
        let worker = Self::start(args);
        worker.wait_for("/ready", 200);
        worker
    }

    /// Starts `command`, which must print where it listens.
    pub(crate) fn spawn(command: &mut Command) -> Self {
        Self::spawn_and(command, |mut stderr| {
            let mut text = String::new();
            // A worker that is killed may leave half a character.
            let _ = stderr.read_to_string(&mut text);
            text
        })
    }

    /// Starts `command`, whose standard error is given to `read`.
    pub(crate) fn spawn_and(command: &mut Command, read: fn(ChildStderr) -> String) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary starts");
        let stderr = child.stderr.take().expect("piped");
        let stderr = std::thread::spawn(move || read(stderr));
        let line = first_line(child.stdout.take().expect("piped"));
        let address = line
            .trim()
            .strip_prefix("listening on http://")
            .unwrap_or_else(|| panic!("no address in {line:?}"))
            .parse()
            .expect("an address");
        Self { child, address, stderr: Some(stderr) }
    }

    /// Sends a request and reads status and body.
    pub(crate) fn request(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        request(self.address, method, path, body).expect("it answers")
    }

    /// Sends a request, for an answer that is read bit by bit.
    pub(crate) fn send(&self, method: &str, path: &str, body: &str) -> TcpStream {
        send(self.address, method, path, body).expect("it listens")
    }

    /// `GET /health` as JSON.
    pub(crate) fn health(&self) -> serde_json::Value {
        serde_json::from_str(&self.request("GET", "/health", "").1).expect("JSON")
    }

    /// Asks `path` until it answers with `status`.
    pub(crate) fn wait_for(&self, path: &str, status: u16) {
        let began = Instant::now();
        loop {
            let (got, body) = self.request("GET", path, "");
            if got == status {
                return;
            }
            assert!(began.elapsed() < PATIENCE, "{path} answers {got}: {body}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Sends a signal such as `TERM`.
    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status();
        assert!(sent.expect("kill runs").success());
    }

    /// Waits for its end: exit status and everything it logged.
    pub(crate) fn end(mut self) -> (ExitStatus, String) {
        let began = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("it can be waited for") {
                break status;
            }
            assert!(began.elapsed() < PATIENCE, "it does not end");
            std::thread::sleep(Duration::from_millis(2));
        };
        (status, self.stderr.take().expect("taken once").join().expect("reading does not panic"))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Both fail where it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends a request to a worker and reads status and body.
pub(crate) fn request(address: SocketAddr, method: &str, path: &str, body: &str) -> std::io::Result<(u16, String)> {
    let mut stream = send(address, method, path, body)?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply)?;
    let (head, body) = reply.split_once("\r\n\r\n").expect("a head");
    Ok((head.split(' ').nth(1).expect("a status").parse().expect("a number"), body.to_owned()))
}

fn send(address: SocketAddr, method: &str, path: &str, body: &str) -> std::io::Result<TcpStream> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let n_bytes = body.len();
    let head = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n");
    let request = format!("{head}Content-Type: application/json\r\nContent-Length: {n_bytes}\r\n\r\n{body}");
    stream.write_all(request.as_bytes())?;
    Ok(stream)
}

fn first_line(stdout: ChildStdout) -> String {
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line).expect("UTF-8");
    line
}

/// An orchestrator that answers callbacks with these status lines, the last one again and again.
pub(crate) struct Orchestrator {
    /// Where it waits for the callback.
    pub(crate) url: String,
    bodies: mpsc::Receiver<String>,
}

impl Orchestrator {
    /// Starts to listen.
    pub(crate) fn start(statuses: &'static [&'static str]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("http://{}/ready?x=1", listener.local_addr().expect("an address"));
        let (sender, bodies) = mpsc::channel();
        std::thread::spawn(move || {
            for i in 0.. {
                let Ok((stream, _)) = listener.accept() else { return };
                let body = answer(stream, statuses[i.min(statuses.len() - 1)]);
                if sender.send(body).is_err() {
                    return;
                }
            }
        });
        Self { url, bodies }
    }

    /// The body of the next call.
    pub(crate) fn next_call(&self) -> serde_json::Value {
        let body = self.bodies.recv_timeout(PATIENCE).expect("a call");
        serde_json::from_str(&body).expect("JSON")
    }
}

fn answer(mut stream: TcpStream, status: &str) -> String {
    let mut request = Vec::new();
    let mut buffer = [0; 4096];
    while !request.ends_with(b"}") {
        let n = stream.read(&mut buffer).expect("a request");
        assert!(n > 0, "half a request");
        request.extend_from_slice(&buffer[..n]);
    }
    let reply = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    stream.write_all(reply.as_bytes()).expect("it reads");
    let request = String::from_utf8(request).expect("UTF-8");
    request.split_once("\r\n\r\n").expect("a head").1.to_owned()
}

/// A folder for files; gone when dropped.
pub(crate) struct Files(tempfile::TempDir);

impl Files {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    /// Writes a file and gives its path.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.path(name);
        std::fs::write(&path, bytes).expect("room for it");
        path.to_str().expect("UTF-8").to_owned()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// `text` without this folder's path, for snapshots.
    pub(crate) fn unnamed(&self, text: &str) -> String {
        text.replace(self.0.path().to_str().expect("UTF-8"), "[dir]")
    }
}
