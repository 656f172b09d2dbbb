//! Each system call fails once with each of its possible errors.

use std::collections::BTreeSet;

use crate::stage::{Boundary, Kind, SCENES, Scene, Stage, boundaries};

/// The errors that each call may return. On FUSE each call for a file can return EINTR.
const FAULTS: &[(&str, &[&str])] = &[
    ("openat", &["EMFILE", "ENFILE", "EACCES", "EROFS", "ENOSPC", "EIO", "EINTR", "EOPNOTSUPP"]),
    ("open", &["EMFILE", "EACCES", "EROFS", "ENOSPC", "EIO", "EINTR"]),
    // 524 is Linux's ENOTSUPP.
    ("flock", &["ENOLCK", "EIO", "EINTR", "EOPNOTSUPP", "524", "ENOSYS", "EINVAL", "EACCES", "EPERM", "EBADF"]),
    ("fstat", &["EIO", "EINTR"]),
    ("newfstatat", &["EIO", "EINTR", "EACCES"]),
    ("pread64", &["EIO", "EINTR"]),
    ("write", &["ENOSPC", "EIO", "EDQUOT"]),
    ("pwrite64", &["ENOSPC", "EIO", "EINTR", "EDQUOT"]),
    ("utimensat", &["EPERM", "EROFS", "EIO", "EINTR"]),
    ("linkat", &["EPERM", "EACCES", "EMLINK", "ENOSPC", "EDQUOT", "EIO", "EINTR", "EOPNOTSUPP", "524", "EXDEV"]),
    ("unlinkat", &["EIO", "EINTR", "EACCES", "EPERM", "EROFS"]),
    ("getdents64", &["EIO"]),
    ("fstatfs", &["EIO", "EINTR", "EPERM"]),
    ("pidfd_open", &["ENOSYS", "EMFILE", "EPERM", "EACCES"]),
    ("inotify_init1", &["EMFILE", "ENOSYS"]),
    ("inotify_add_watch", &["ENOSPC", "ENOENT"]),
];

pub(crate) fn run() {
    let (mut tried, mut errors) = (0, 0);
    // The calls that each kind needs, and the failures that it can work around.
    let (mut unsupported, mut got_around) = (BTreeSet::new(), BTreeSet::new());
    for kind in [Kind::Shlock, Kind::Flock] {
        for &scene in SCENES.iter().filter(|&&scene| scene != Scene::Held) {
            for Boundary { call, number } in boundaries(kind, scene) {
                // In a wait, write(2) also wakes Tokio, which does not expect it to fail.
                if (scene, call) == (Scene::Waiting, "write") {
                    continue;
                }
                let faults = FAULTS.iter().find(|(name, _)| *name == call).map_or(&[][..], |(_, faults)| faults);
                for fault in faults {
                    let error = refuse(kind, scene, Boundary { call, number }, fault);
                    tried += 1;
                    errors += usize::from(error.is_some());
                    match error {
                        Some(error) if error.contains(" lock is not possible at ") => {
                            _ = unsupported.insert((kind, call))
                        }
                        Some(_) => {}
                        None => _ = got_around.insert((kind, call, *fault)),
                    }
                }
            }
        }
    }
    assert_eq!(unsupported, [(Kind::Shlock, "flock"), (Kind::Shlock, "linkat"), (Kind::Flock, "flock")].into());
    // On NFS, flock needs a file that is open for writing.
    assert!(got_around.contains(&(Kind::Shlock, "flock", "EBADF")), "{got_around:?}");
    println!("{tried} failed calls: {errors} errors, each with the path in it, and {} worked around", tried - errors);
}

/// Lets one call fail. Returns the error that the worker reported, if any.
fn refuse(kind: Kind, scene: Scene, Boundary { call, number }: Boundary, fault: &str) -> Option<String> {
    let place = format!("{kind:?} {scene:?}: {fault} at {call} {number}");
    let mut stage = Stage::new(kind, scene);
    stage.run(&["-e".into(), format!("inject={call}:error={fault}:when={number}")]);
    let report = stage.report();
    // The directory cannot be listed. Then only the age of the links shows whether their creators are dead.
    if (scene, fault, report.as_str()) == (Scene::Leftovers, "EACCES", "busy\n") {
        return None;
    }
    let error = report.contains("error").then_some(report);
    match &error {
        Some(error) => {
            assert_ne!(fault, "EINTR", "{place}: {error}");
            let names = ["x.lock", ".x.lock.tokio-lockfile.break"].map(|name| stage.path().with_file_name(name));
            assert!(names.iter().any(|path| error.contains(&*path.to_string_lossy())), "{place}: {error}");
        }
        None => {
            assert_eq!(stage.report(), "held\nreleased\n", "{place}: a failed call is not a busy lock");
        }
    }
    stage.is_in_order(&place);
    error
}
