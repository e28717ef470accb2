//! What can be written on the command line, and where values come from.

use crate::harness::{Files, Worker, command, error_of, run, stdout_of};

#[test]
fn help_explains_every_flag() {
    insta::assert_snapshot!("help", stdout_of(&run(&["--help"])));
    insta::assert_snapshot!("help_generate", stdout_of(&run(&["generate", "--help"])));
    for command in ["quantize", "perplexity", "compare"] {
        insta::assert_snapshot!(format!("help_{command}"), stdout_of(&run(&[command, "--help"])));
    }
    insta::assert_snapshot!("help_bench", stdout_of(&run(&["bench", "--help"])));
}

#[test]
fn help_shows_no_value_of_the_environment() {
    let output = command(&["--help"]).env("WORKER_ORCD_WORKER_ID", "secret-name").output().unwrap();
    assert!(!stdout_of(&output).contains("secret-name"));
}

#[test]
fn refuses_what_it_does_not_know() {
    for args in
        [&["--no-such-flag"][..], &["inspect", "--api-key", "x"], &["no-such-command"], &["generate", "--port", "1"]]
    {
        let output = run(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(output.stdout.is_empty());
        assert!(String::from_utf8_lossy(&output.stderr).starts_with("error: "), "{args:?}");
    }
}

#[test]
fn a_flag_wins_over_its_variable_and_that_over_the_default() {
    let id = |args: &[&str], variable: Option<&str>| {
        let mut command = command(args);
        command.args(["--port", "0"]).envs(variable.map(|id| ("WORKER_ORCD_WORKER_ID", id)));
        Worker::spawn(&mut command).health()["worker_id"].as_str().unwrap().to_owned()
    };
    assert_eq!(id(&["--worker-id", "flag"], Some("variable")), "flag");
    assert_eq!(id(&[], Some("variable")), "variable");
    let (first, second) = (id(&[], None), id(&[], None));
    assert!(first.len() == 36 && first != second, "fresh UUIDs: {first} {second}");
}

#[test]
fn says_which_variable_holds_a_bad_value() {
    let output = command(&[]).env("WORKER_ORCD_PORT", "many").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("invalid value 'many' for '--port <N>'"), "{stderr}");
    assert!(stderr.contains("The value comes from the environment variable WORKER_ORCD_PORT."), "{stderr}");
    let output = command(&["-p", "few"]).env("WORKER_ORCD_PORT", "9").output().unwrap();
    assert!(!String::from_utf8(output.stderr).unwrap().contains("environment"));
}

#[test]
fn a_variable_wins_over_the_file_and_that_over_the_default() {
    let files = Files::new();
    let config = files.write("worker.toml", b"worker-id = 'file'\nalias = 'file'\nport = 0\ndrain-timeout-sec = 1\n");
    let health = |args: &[&str], variables: &[(&str, &str)]| {
        let health = Worker::spawn(command(args).envs(variables.iter().copied())).health();
        [&health["worker_id"], &health["model"]].map(|name| name.as_str().unwrap().to_owned())
    };
    assert_eq!(health(&["--config", &config], &[]), ["file", "file"]);
    assert_eq!(health(&["--config", &config], &[("WORKER_ORCD_ALIAS", "variable")]), ["file", "variable"]);
    let variables = [("WORKER_ORCD_CONFIG", config.as_str()), ("WORKER_ORCD_WORKER_ID", "variable")];
    assert_eq!(health(&["--worker-id", "flag"], &variables), ["flag", "file"]);
    assert_eq!(health(&["serve"], &variables), ["variable", "file"]);
}

#[test]
fn says_where_in_the_file_a_fault_is() {
    let files = Files::new();
    let config = files.write("worker.toml", b"# first\nprot = 1\nport = 65536\n");
    let error = files.unnamed(&error_of(&run(&["--config", &config])));
    insta::assert_snapshot!(error);
    let help = run(&["--config", &config, "--help"]);
    assert!(stdout_of(&help).contains("--config <FILE>"));
}

#[test]
fn a_file_for_serve_does_not_disturb_the_others() {
    let output = command(&["inspect", "--help"]).env("WORKER_ORCD_CONFIG", "missing.toml").output().unwrap();
    stdout_of(&output);
    let output = command(&["generate", "a", "-n", "1"]).env("WORKER_ORCD_CONFIG", "missing.toml").output().unwrap();
    stdout_of(&output);
}
