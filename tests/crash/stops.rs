//! The process is stopped after every system call. Meanwhile another process takes the lock, or all files are removed.

use std::mem::MaybeUninit;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};

use crate::stage::{Boundary, Kind, Scene, Stage, boundaries, each_scene, is_asleep, wait_until, worker_of};

pub(crate) fn run() {
    let mut tried = 0;
    each_scene(|kind, scene| {
        for boundary in boundaries(kind, scene) {
            stop(kind, scene, boundary);
            tried += 1;
        }
    });
    println!("stopped at {tried} boundaries: no lock was taken from its holder");

    let mut swept = 0;
    for scene in [Scene::Free, Scene::Stale, Scene::Unfinished, Scene::Leftovers] {
        for boundary in boundaries(Kind::Shlock, scene) {
            sweep(scene, boundary);
            swept += 1;
        }
    }
    println!("all files removed at {swept} boundaries: every worker got the lock or reported the loss");

    let mut removed = 0;
    for boundary in boundaries(Kind::Shlock, Scene::Stale) {
        removed += usize::from(remove_stale(boundary));
    }
    assert!(removed > 0);
    println!("the stale file removed by its owner at {removed} boundaries: never two holders");

    let mut led_away = 0;
    for kind in [Kind::Shlock, Kind::Flock] {
        for scene in [Scene::Free, Scene::Stale, Scene::Held] {
            for boundary in boundaries(kind, scene) {
                lead_away(kind, scene, boundary);
                led_away += 1;
            }
        }
    }
    println!("a link put in the place of the lock at {led_away} boundaries: nobody follows it");
}

/// A user who may write to the directory puts a symbolic link in the place of the lock, and of each private name. It leads
/// to a file that only the worker's user may open.
fn lead_away(kind: Kind, scene: Scene, Boundary { call, number }: Boundary) {
    let place = format!("{kind:?} {scene:?}: led away at {call} {number}");
    let stage = Stage::new(kind, scene);
    let secret = stage.path().parent().unwrap().with_file_name("secret");
    std::fs::write(&secret, "secret").unwrap();
    let inotify = inotify::init(CreateFlags::NONBLOCK).unwrap();
    inotify::add_watch(&inotify, &secret, WatchFlags::ALL_EVENTS).unwrap();
    let mut child = stage.start(&["-e".into(), format!("inject={call}:signal=STOP:when={number}")]);
    let strace = child.id();
    let mut has_ended = move || child.try_wait().unwrap().is_some();
    wait_until(|| stage.has_stopped() || has_ended());
    let directory = stage.path().parent().unwrap().to_owned();
    let names = ["x.lock", ".x.lock.tokio-lockfile.new", ".x.lock.tokio-lockfile.break"];
    for (number, name) in names.iter().enumerate() {
        let _ = std::fs::rename(directory.join(name), directory.join(format!("aside{number}")));
        std::os::unix::fs::symlink(&secret, directory.join(name)).unwrap();
    }
    wait_until(|| {
        let pid = worker_of(strace).and_then(|worker| Pid::from_raw(worker as i32));
        pid.inspect(|pid| _ = kill_process(*pid, Signal::CONT));
        has_ended()
    });
    let mut buffer = [MaybeUninit::uninit(); 1024];
    let mut events = inotify::Reader::new(&inotify, &mut buffer);
    assert_eq!(events.next().err(), Some(Errno::AGAIN), "{place}: the link is followed");
}

/// All files are removed. During an attempt this is no error; while the lock is held it is one.
fn sweep(scene: Scene, Boundary { call, number }: Boundary) {
    let place = format!("{scene:?}: files removed at {call} {number}");
    let mut stage = Stage::new(Kind::Shlock, scene);
    let mut child = stage.start(&["-e".into(), format!("inject={call}:signal=STOP:when={number}")]);
    let strace = child.id();
    let mut has_ended = move || child.try_wait().unwrap().is_some();
    wait_until(|| stage.has_stopped() || has_ended());
    let has_published = std::fs::read_to_string(stage.path()).is_ok_and(|record| record.contains("\t \t\n"));
    for entry in std::fs::read_dir(stage.path().parent().unwrap()).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
    wait_until(|| {
        let pid = worker_of(strace).and_then(|worker| Pid::from_raw(worker as i32));
        pid.inspect(|pid| _ = kill_process(*pid, Signal::CONT));
        has_ended()
    });
    let report = stage.report();
    let is_lost = report.contains("lost the lock") && has_published;
    assert!(report == "held\nreleased\n" || is_lost, "{place}: {report}");
    stage.is_in_order(&place);
}

/// The owner of the stale file removes it during its takeover, and this process takes the lock at once. `false` if the
/// worker was not that far, or further.
fn remove_stale(Boundary { call, number }: Boundary) -> bool {
    let place = format!("stale file removed at {call} {number}");
    let mut stage = Stage::new(Kind::Shlock, Scene::Stale);
    let stale = std::fs::read(stage.path()).unwrap();
    let mut child = stage.start(&["-e".into(), format!("inject={call}:signal=STOP:when={number}")]);
    let strace = child.id();
    let mut has_ended = move || child.try_wait().unwrap().is_some();
    wait_until(|| stage.has_stopped() || has_ended());
    let is_stale = std::fs::read(stage.path()).is_ok_and(|record| record == stale);
    if is_stale {
        std::fs::remove_file(stage.path()).unwrap();
    }
    let other = stage.take();
    wait_until(|| {
        let pid = worker_of(strace).and_then(|worker| Pid::from_raw(worker as i32));
        pid.inspect(|pid| _ = kill_process(*pid, Signal::CONT));
        has_ended()
    });
    if let Some(guard) = other.filter(|_| is_stale) {
        assert!(guard.is_held(), "{place}: the next holder has lost its lock");
        assert!(!stage.report().contains("held"), "{place}: two holders");
        drop(guard);
    }
    stage.is_in_order(&place);
    is_stale
}

fn stop(kind: Kind, scene: Scene, Boundary { call, number }: Boundary) {
    let place = format!("{kind:?} {scene:?}: stopped at {call} {number}");
    let mut stage = Stage::new(kind, scene);
    let mut child = stage.start(&["-e".into(), format!("inject={call}:signal=STOP:when={number}")]);
    let strace = child.id();
    let mut has_ended = move || child.try_wait().unwrap().is_some();
    wait_until(|| {
        if scene == Scene::Waiting && !stage.has_stopped() && is_asleep(strace) {
            stage.release_holder();
        }
        stage.has_stopped() || has_ended()
    });

    // This process attempts to take the lock. If it gets it, it holds it while the stopped worker goes on.
    let is_releasing = stage.report().contains("held");
    stage.release_holder();
    let other = stage.take();
    let mut resume = || {
        // Repeated, because a stop signal may still be pending.
        let pid = worker_of(strace).and_then(|worker| Pid::from_raw(worker as i32));
        pid.inspect(|pid| _ = kill_process(*pid, Signal::CONT));
        has_ended()
    };
    if let Some(guard) = other {
        wait_until(|| resume() || scene == Scene::Waiting && is_asleep(strace));
        assert!(guard.is_held(), "{place}: the next holder has lost its lock");
        assert!(is_releasing || !stage.report().contains("held"), "{place}: two holders");
        drop(guard);
    }
    wait_until(resume);
    assert!(!stage.report().contains("error"), "{place}: {}", stage.report());
    stage.is_in_order(&place);
}
