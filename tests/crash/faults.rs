//! Refused at every system call.

use crate::stage::{Boundary, Kind, Scene, Stage, boundaries};

/// What each call may be refused with. EINTR only where it can happen.
const FAULTS: &[(&str, &[&str])] = &[
    ("openat", &["EMFILE", "ENFILE", "EACCES", "EROFS", "ENOSPC", "EIO", "EINTR", "EOPNOTSUPP"]),
    ("open", &["EMFILE", "EACCES", "EROFS", "ENOSPC", "EIO", "EINTR"]),
    ("flock", &["ENOLCK", "EIO", "EINTR", "EOPNOTSUPP"]),
    ("fstat", &["EIO"]),
    ("newfstatat", &["EIO"]),
    ("pread64", &["EIO", "EINTR"]),
    ("write", &["ENOSPC", "EIO", "EDQUOT"]),
    ("pwrite64", &["ENOSPC", "EIO", "EINTR", "EDQUOT"]),
    ("linkat", &["EPERM", "EMLINK", "ENOSPC", "EIO", "EOPNOTSUPP"]),
    ("unlinkat", &["EIO", "EACCES"]),
    ("getdents64", &["EIO"]),
    ("pidfd_open", &["ENOSYS", "EMFILE", "EPERM"]),
    ("inotify_init1", &["EMFILE", "ENOSYS"]),
    ("inotify_add_watch", &["ENOSPC", "ENOENT"]),
];

pub(crate) fn run() {
    let (mut tried, mut errors) = (0, 0);
    for kind in [Kind::Shlock, Kind::Flock] {
        for scene in [Scene::Free, Scene::Stale, Scene::Litter, Scene::Waiting] {
            for Boundary { call, number } in boundaries(kind, scene) {
                // In a wait, write(2) also wakes Tokio, which does not expect it to fail.
                if (scene, call) == (Scene::Waiting, "write") {
                    continue;
                }
                let faults = FAULTS.iter().find(|(name, _)| *name == call).map_or(&[][..], |(_, faults)| faults);
                for fault in faults {
                    errors += usize::from(refuse(kind, scene, Boundary { call, number }, fault));
                    tried += 1;
                }
            }
        }
    }
    println!("refused {tried} times: {errors} errors, each with the path in it, and {} ways around", tried - errors);
}

/// Whether the worker answered with an error.
fn refuse(kind: Kind, scene: Scene, Boundary { call, number }: Boundary, fault: &str) -> bool {
    let place = format!("{kind:?} {scene:?}: {fault} at {call} {number}");
    let mut stage = Stage::new(kind, scene);
    stage.run(&["-e".into(), format!("inject={call}:error={fault}:when={number}")]);
    let report = stage.report();
    let is_error = report.contains("error");
    // A directory that may not be listed: then only the age of the links tells whether their makers are dead.
    if (scene, fault, report.as_str()) == (Scene::Litter, "EACCES", "busy\n") {
        return is_error;
    }
    if is_error {
        assert!(report.contains(&*stage.path().to_string_lossy()), "{place}: {report}");
    } else {
        assert_eq!(report, "held\nreleased\n", "{place}: busy and broken are different answers");
    }
    stage.is_in_order(&place);
    is_error
}
