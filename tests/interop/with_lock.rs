//! The example `with_lock` beside flock(1).

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal};

use crate::{Peer, place};

/// `cargo test` has built the example.
fn example() -> PathBuf {
    std::env::current_exe().unwrap().parent().unwrap().parent().unwrap().join("examples/with_lock")
}

#[test]
fn the_example_with_lock_has_the_exit_codes_of_flock() {
    let (_dir, path) = place();
    let held = path.with_extension("held");
    let _peer = Peer::flock1(&held);
    let example = example();
    let code = |program: &Path, arguments: &[&str], lock: String, command: &[&str]| {
        let mut command_line = Command::new(program);
        command_line.args(arguments).arg(lock).args(command).stderr(Stdio::null());
        command_line.status().unwrap_or_else(|error| panic!("{command_line:?}: {error}")).code()
    };
    for (arguments, path, command) in [
        (&[][..], &path, &["true"][..]),
        (&["-s"], &path, &["sh", "-c", "exit 3"]),
        (&[], &path, &["sh", "-c", "kill -KILL $$"]),
        (&[], &path, &["sh", "-c", "kill -TERM $$"]),
        (&[], &path, &["/no/such/program"]),
        (&[], &path, &["/etc/passwd"]),
        (&["-n"], &held, &["true"]),
        (&["-n", "-s", "-E", "9"], &held, &["true"]),
        (&["-w", "0.01"], &held, &["true"]),
        (&["-w", "soon"], &path, &["true"]),
        (&["--bogus"], &path, &["true"]),
        (&[], &path, &[]),
        (&[], &path.join("missing"), &["true"]),
        (&[], &path.with_file_name("missing").join("x.lock"), &["true"]),
        (&[], &PathBuf::from("/proc/no.lock"), &["true"]),
    ] {
        let theirs = code(Path::new("flock"), arguments, path.display().to_string(), command);
        let ours = code(&example, arguments, format!("flockfile:{}", path.display()), command);
        assert_eq!(ours, theirs, "{arguments:?} {path:?} {command:?}");
    }
}

/// A second Ctrl-C would make many programs end without cleaning up. script(1) makes the terminal.
#[test]
fn the_keys_of_the_terminal_reach_the_command_once() {
    let (dir, path) = place();
    let work = dir.path().join("work");
    std::fs::write(
        &work,
        "trap 'echo got INT' INT; trap 'echo got TERM; exit 0' TERM; echo by $PPID; while :; do read line; done",
    )
    .unwrap();
    // The shell stays in front of it, so that script(1) does not see that it is stopped.
    let command =
        format!("trap : INT; {} flockfile:{} sh {}; exit $?", example().display(), path.display(), work.display());
    let mut terminal = Command::new("script")
        .args(["-qec", &command, "/dev/null"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("script(1) is there");
    let (mut keys, stdout) = (terminal.stdin.take().unwrap(), terminal.stdout.take().unwrap());
    let mut said = BufReader::new(stdout).lines().map(Result::unwrap).filter_map(|line| {
        let at = line.find("by ").or_else(|| line.find("got "))?;
        Some(line[at..].trim_end().to_owned())
    });
    let holder = said.next().unwrap().strip_prefix("by ").unwrap().parse().unwrap();
    let signal = |signal| rustix::process::kill_process(Pid::from_raw(holder).unwrap(), signal).unwrap();
    // So that the command has taken the first one before a second one could come.
    signal(Signal::STOP);
    keys.write_all(b"\x03").unwrap();
    assert_eq!(said.next().as_deref(), Some("got INT"));
    signal(Signal::CONT);
    signal(Signal::TERM);
    assert_eq!(said.next().as_deref(), Some("got TERM"));
    assert!(terminal.wait().unwrap().success());
}
