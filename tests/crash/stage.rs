//! The directory in which a worker runs, and how the worker is started.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio_lockfile::{LockFile, LockGuard};

use crate::worker::{BEGIN, END, ROLE};

/// The limit for a hang.
pub(crate) const HANG: Duration = Duration::from_secs(60);

/// The calls that are tested, with their names in strace.
pub(crate) const CALLS: &[&str] = &[
    "openat",
    "open",
    "flock",
    "fstat",
    "newfstatat",
    "lstat",
    "pread64",
    "pwrite64",
    "write",
    "utimensat",
    "linkat",
    "unlinkat",
    "getdents64",
    "fstatfs",
    "pidfd_open",
    "kill",
    "poll",
    "close",
    "inotify_init1",
    "inotify_add_watch",
];

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Shlock,
    Flock,
}

/// What is at the path of the lock when the worker starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scene {
    /// No file, or a file that nobody has locked.
    Free,
    /// A dead holder's file.
    Stale,
    /// The same, and the holder was killed before it removed the private name of the file. It needs this name on a file
    /// system where a file cannot be created without one.
    Unfinished,
    /// The file of a dead holder of another program, with the links that a dead breaker left.
    Leftovers,
    /// A lock that is held; the worker attempts once.
    Held,
    /// The same; the worker waits.
    Waiting,
}

/// `Waiting` is left out where a wait polls: there the test cannot see that the wait is asleep.
pub(crate) const SCENES: &[Scene] = match cfg!(tokio_lockfile_test_portable) {
    false => &[Scene::Free, Scene::Stale, Scene::Unfinished, Scene::Leftovers, Scene::Held, Scene::Waiting],
    true => &[Scene::Free, Scene::Stale, Scene::Unfinished, Scene::Leftovers, Scene::Held],
};

/// One run's directory.
pub(crate) struct Stage {
    dir: TempDir,
    pub(crate) kind: Kind,
    pub(crate) scene: Scene,
    /// The guard of this process, in a scene where the lock is held.
    holder: Option<LockGuard>,
}

/// The call at which strace injects something: the `number`-th call with this name.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Boundary {
    pub(crate) call: &'static str,
    pub(crate) number: usize,
}

fn dead_pid() -> u32 {
    let mut child = Command::new("true").spawn().unwrap();
    child.wait().unwrap();
    child.id()
}

impl Stage {
    pub(crate) fn new(kind: Kind, scene: Scene) -> Self {
        let dir = TempDir::new_in("/dev/shm").unwrap();
        fs::create_dir(dir.path().join("locks")).unwrap();
        fs::write(dir.path().join("report"), "").unwrap();
        let mut stage = Self { dir, kind, scene, holder: None };
        let path = stage.path();
        match (scene, kind) {
            (Scene::Free, _) => {}
            (Scene::Stale, Kind::Shlock) => fs::write(path, format!("{:>10}\t \t\n", dead_pid())).unwrap(),
            (Scene::Unfinished, Kind::Shlock) => {
                fs::write(&path, format!("{:>10}\t \t\n", dead_pid())).unwrap();
                fs::hard_link(&path, path.with_file_name(".x.lock.tokio-lockfile.new")).unwrap();
            }
            (Scene::Stale | Scene::Unfinished | Scene::Leftovers, Kind::Flock) => {
                fs::write(path, format!("{:>10}\t\t \t\t\n", dead_pid())).unwrap()
            }
            (Scene::Leftovers, Kind::Shlock) => {
                let dead = dead_pid();
                fs::write(&path, format!("{dead}\n")).unwrap();
                fs::hard_link(&path, path.with_file_name(format!("shlock{dead}x"))).unwrap();
                fs::hard_link(&path, path.with_file_name(".x.lock.tokio-lockfile.break")).unwrap();
            }
            (Scene::Held | Scene::Waiting, _) => stage.holder = Some(stage.take().expect("the lock is free")),
        }
        stage
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("locks/x.lock")
    }

    fn lock(&self) -> LockFile {
        match self.kind {
            Kind::Shlock => LockFile::shlock(self.path()),
            Kind::Flock => LockFile::flock(self.path()),
        }
        .unwrap()
    }

    /// One attempt of this process.
    pub(crate) fn take(&self) -> Option<LockGuard> {
        self.lock().blocking_attempt().unwrap()
    }

    /// Releases the lock that this process holds in the scene.
    pub(crate) fn release_holder(&mut self) {
        self.holder.take().inspect(|guard| assert!(guard.is_held(), "the holder has lost its lock"));
    }

    /// What the worker has reported so far.
    pub(crate) fn report(&self) -> String {
        fs::read_to_string(self.dir.path().join("report")).unwrap()
    }

    /// Starts the worker under strace with these options.
    pub(crate) fn start(&self, options: &[String]) -> Child {
        let way = if self.scene == Scene::Waiting { "obtain" } else { "attempt" };
        Command::new("strace")
            .arg("-o")
            .arg(self.dir.path().join("trace"))
            .args(options)
            .arg(std::env::current_exe().unwrap())
            .args([ROLE, way, &self.lock().url().to_string()])
            .arg(self.dir.path().join("report"))
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("strace(1) is installed")
    }

    /// Runs the worker to its end. In the scene `Waiting`, the holder releases the lock once the worker is asleep.
    pub(crate) fn run(&mut self, options: &[String]) {
        let mut child = self.start(options);
        if self.scene == Scene::Waiting {
            wait_until(|| is_asleep(child.id()) || child.try_wait().unwrap().is_some());
            self.release_holder();
        }
        child.wait().unwrap();
    }

    /// The calls between the worker's two marks, in their order.
    pub(crate) fn trace(&self) -> Vec<(Boundary, String)> {
        let trace = fs::read_to_string(self.dir.path().join("trace")).unwrap();
        let mut counts = std::collections::HashMap::new();
        let mut inside = false;
        let mut calls = Vec::new();
        for line in trace.lines() {
            let Some(&call) = CALLS.iter().find(|call| line.starts_with(&format!("{call}("))) else {
                inside = !line.contains(END) && (inside || line.contains(BEGIN));
                continue;
            };
            let number = counts.entry(call).and_modify(|count| *count += 1).or_insert(1);
            if inside {
                calls.push((Boundary { call, number: *number }, line.to_owned()));
            }
            inside = !line.contains(END) && (inside || line.contains(BEGIN));
        }
        calls
    }

    /// Whether the worker has been stopped. /proc cannot show it: its state is the same in every traced call.
    pub(crate) fn has_stopped(&self) -> bool {
        fs::read_to_string(self.dir.path().join("trace")).is_ok_and(|trace| trace.contains("stopped by SIGSTOP"))
    }

    /// Checks that the next process gets the lock and that no leftover files remain. Returns how long it took.
    pub(crate) fn is_in_order(&mut self, after: &str) -> Duration {
        self.release_holder();
        let started = Instant::now();
        // There is a second attempt: at the first, the kernel may not have closed the killed process's file yet.
        let guard = self.take().or_else(|| self.take()).unwrap_or_else(|| panic!("the lock is not free after {after}"));
        let delay = started.elapsed();
        drop(guard);
        let names: Vec<_> =
            fs::read_dir(self.path().parent().unwrap()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        let expected: &[&str] = if self.kind == Kind::Flock { &["x.lock"] } else { &[] };
        assert_eq!(names, expected, "leftover files after {after}");
        delay
    }
}

/// All calls in a scene at which something can be injected.
pub(crate) fn boundaries(kind: Kind, scene: Scene) -> Vec<Boundary> {
    let mut stage = Stage::new(kind, scene);
    stage.run(&[]);
    let calls: Vec<Boundary> = stage.trace().into_iter().map(|(boundary, _)| boundary).collect();
    assert!(calls.len() >= 5, "{kind:?} {scene:?}: {calls:?}");
    calls
}

pub(crate) fn each_scene(mut act: impl FnMut(Kind, Scene)) {
    for kind in [Kind::Shlock, Kind::Flock] {
        for &scene in SCENES {
            act(kind, scene);
        }
    }
}

pub(crate) fn wait_until(mut is_so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < HANG, "hangs");
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// The PID of the worker that this strace traces.
pub(crate) fn worker_of(strace: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{strace}/task/{strace}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}

/// Whether the worker that this strace traces watches a file.
pub(crate) fn is_asleep(strace: u32) -> bool {
    let Some(worker) = worker_of(strace) else { return false };
    let watches = |path: &Path| fs::read_to_string(path).is_ok_and(|info| info.contains("inotify wd:"));
    let infos = fs::read_dir(format!("/proc/{worker}/fdinfo")).into_iter().flatten().flatten();
    infos.map(|entry| entry.path()).any(|path| watches(&path))
}
