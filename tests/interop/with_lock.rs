//! The example `with_lock` beside flock(1).

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal};

use crate::identity::{KINDS, url};
use crate::{Peer, place, succeeds};

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
    // A shell that reads can miss a signal which comes right before the read.
    std::fs::write(
        &work,
        "trap 'echo got INT' INT; trap 'echo got TERM; exit 0' TERM; echo by $PPID; while :; do sleep 0.05; done",
    )
    .unwrap();
    // The shell stays in front of it, so that script(1) does not see that it is stopped.
    let command =
        format!("trap : INT; {} flockfile:{} sh {}; exit $?", example().display(), path.display(), work.display());
    // A shell without job control lets its background processes ignore these signals.
    let mut terminal = Command::new("env")
        .args(["--default-signal=INT,QUIT", "script", "-qec", &command, "/dev/null"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("env(1) is there");
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

fn output(command: &mut Command) -> (Option<i32>, String) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn a_command_runs_where_proc_is_missing() {
    for kind in KINDS {
        let (_dir, path) = place();
        let script = "umount --lazy /proc && exec \"$@\"";
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", script, "sh"]).arg(example()).arg(url(kind, &path));
        assert_eq!(output(command.args(["sh", "-c", "exit 3"])), (Some(3), String::new()));
    }
}

/// In such a namespace the first child becomes the init process, and no other one can be started after its end.
#[test]
fn unshare_without_a_fork_is_named_where_nothing_can_be_started() {
    let (_dir, path) = place();
    let unshare = |script: &str, kind: &str| {
        let mut command = Command::new("unshare");
        command.args(["--pid", "sh", "-c", script, "sh"]).arg(example()).arg(url(kind, &path));
        output(command.args(["sh", "-c", "exit 3"]))
    };
    // The first child is the command.
    assert_eq!(unshare("exec \"$@\"", "flockfile"), (Some(3), String::new()));
    let (code, said) = unshare("/bin/true; exec \"$@\"", "flockfile");
    assert!(code == Some(69) && said.contains("unshare --pid without --fork"), "{code:?}: {said}");
    // A shlock on a disk needs a thread.
    let (code, said) = unshare("exec \"$@\"", "shlockfile");
    let is_told = said.contains("Invalid argument") && said.contains("unshare --pid without --fork");
    assert!(code == Some(3) || (code == Some(66) && is_told), "{code:?}: {said}");
}

/// chattr(1) makes a directory from which no file can be removed.
#[test]
fn a_release_that_fails_is_told_and_leaves_the_exit_code_as_it_is() {
    let (dir, path) = place();
    for code in [0, 3] {
        let script = format!("chattr +a '{}' && exit {code}", dir.path().display());
        let ended = output(Command::new(example()).arg(&path).args(["sh", "-c", &script]));
        assert!(succeeds(Command::new("chattr").arg("-a").arg(dir.path())));
        let (ended, said) = ended;
        assert!(ended == Some(code) && said.contains("Operation not permitted"), "{ended:?}: {said}");
    }
}
