//! The examples, as a new user runs them. `cargo test` builds the examples before it runs the tests.
#![cfg(unix)]

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::time::timeout;

/// The limit for a hang. No example takes this long.
const HANG: Duration = Duration::from_secs(120);

const EXAMPLES: [&str; 9] =
    ["at_most", "beyond", "metrics", "service", "shutdown", "singleton", "state_file", "timeout", "with_lock"];

/// The command that runs an example in this directory, without input.
fn example(name: &str, dir: &TempDir) -> Command {
    let test = std::env::current_exe().unwrap();
    let program: PathBuf = test.parent().unwrap().parent().unwrap().join("examples").join(name);
    assert!(program.exists(), "no {program:?}: run `cargo build --examples` first");
    let modified = |file: &Path| file.metadata().and_then(|file| file.modified()).ok();
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let mut sources = [examples.join(name).with_extension("rs"), examples.join(name).join("main.rs")].into_iter();
    let source = sources.find_map(|source| modified(&source));
    assert!(source <= modified(&program), "{program:?} is older than its source: run `cargo build --examples` first");
    let mut command = Command::new(program);
    command.current_dir(dir.path()).stdin(Stdio::null()).kill_on_drop(true);
    command
}

async fn ended(command: &mut Command) -> Output {
    let output = timeout(HANG, command.output()).await;
    output.unwrap_or_else(|_| panic!("it does not end: {command:?}")).unwrap()
}

fn texts(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (text(&output.stdout), text(&output.stderr))
}

#[tokio::test]
async fn each_example_tells_its_use_and_touches_nothing() {
    for name in EXAMPLES {
        let dir = TempDir::new().unwrap();
        let output = ended(example(name, &dir).arg("--help")).await;
        let (said, _) = texts(&output);
        assert!(output.status.success() && said.to_lowercase().starts_with("usage: "), "{name}: {output:?}");
        for wrong in [&["--bogus", "x", "y", "z"][..], &["--Help"]] {
            let output = ended(example(name, &dir).args(wrong)).await;
            let (_, told) = texts(&output);
            let is_usage = told.contains("usage: ") || told.contains("see --help");
            assert!(is_usage && !output.status.success(), "{name} {wrong:?}: {output:?}");
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "{name} has made a file");
    }
}

#[tokio::test]
async fn a_lock_that_does_not_work_is_not_silent() {
    let dir = TempDir::new().unwrap();
    for (name, arguments) in [("beyond", &["lockfile:/nonexistent/x"][..]), ("service", &["replica", "/nonexistent/x"])]
    {
        let mut running =
            example(name, &dir).args(arguments).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(running.stderr.take().unwrap()).lines();
        let said = timeout(HANG, lines.next_line()).await.unwrap_or_else(|_| panic!("{name} says nothing"));
        let said = said.unwrap().unwrap_or_else(|| panic!("{name} has ended, and said nothing"));
        assert!(said.contains("WARN") && said.contains("/nonexistent/x"), "{name}: {said}");
        drop(running.stdin.take());
        let ended = timeout(HANG, running.wait()).await.unwrap_or_else(|_| panic!("{name} does not end"));
        assert!(ended.unwrap().success());
    }
}

/// The shell's `ulimit -f 0` is a disk without space.
#[tokio::test]
async fn a_full_disk_does_not_cost_the_state() {
    let dir = TempDir::new().unwrap();
    let run = async |limit: &str| {
        let program = example("state_file", &dir).as_std().get_program().to_owned();
        let script = format!("trap '' XFSZ; {limit}exec \"$0\" state.json 2>/dev/null");
        let mut shell = Command::new("sh");
        shell.arg("-c").arg(script).arg(program).current_dir(dir.path()).kill_on_drop(true);
        ended(&mut shell).await.status
    };
    let state = || std::fs::read_to_string(dir.path().join("state.json")).unwrap();
    assert!(run("").await.success());
    let before = state();
    assert!(before.contains("\"runs\": 1"), "{before}");
    assert!(!run("ulimit -f 0; ").await.success());
    assert_eq!(state(), before);
    assert!(run("").await.success());
    assert!(state().contains("\"runs\": 2"), "{}", state());
}

#[tokio::test]
async fn metrics_are_counted_by_the_names_of_the_events() {
    let dir = TempDir::new().unwrap();
    let output = ended(&mut example("metrics", &dir)).await;
    let (said, _) = texts(&output);
    for line in [
        "lock_events_total{name=\"acquired\"} 3",
        "lock_events_total{name=\"released\"} 3",
        "lock_wait_seconds_count 3",
        "lock_wait_seconds_bucket{le=\"+Inf\"} 3",
        "lock_held_seconds_count 3",
    ] {
        assert!(said.contains(line), "{line} is not in {said}");
    }
    let series = said.lines().filter(|line| line.starts_with("lock_events_total")).count();
    assert!(series < 8, "{said}");
}
