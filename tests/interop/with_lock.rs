//! The example `with_lock` beside flock(1).

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::{Peer, place};

/// `cargo test` has built the example.
#[test]
fn the_example_with_lock_has_the_exit_codes_of_flock() {
    let (_dir, path) = place();
    let held = path.with_extension("held");
    let _peer = Peer::flock1(&held);
    let example = std::env::current_exe().unwrap().parent().unwrap().parent().unwrap().join("examples/with_lock");
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
