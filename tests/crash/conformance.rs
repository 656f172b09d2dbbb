//! Checks that the model and the program make the same system calls.

use crate::model::protocol::{At, Kind as Program, Model};
use crate::model::state::{Name, Record, State};
use crate::stage::{Kind, Scene, Stage};

/// The calls that affect the result. The others only examine an open file, or close it.
const DECIDING: &[&str] = &[
    "openat",
    "flock",
    "newfstatat",
    "pread64",
    "pwrite64",
    "utimensat",
    "linkat",
    "unlinkat",
    "getdents64",
    "pidfd_open",
    "kill",
];

pub(crate) fn run() {
    for scene in [Scene::Free, Scene::Stale, Scene::Unfinished, Scene::Leftovers, Scene::Held] {
        let (model, program) = (by_model(scene), by_program(scene));
        assert_eq!(model, program, "{scene:?}: the model's calls, and the program's");
        println!("{scene:?}: the model and the program make the same {} calls", model.len());
    }
}

fn by_program(scene: Scene) -> Vec<&'static str> {
    let mut stage = Stage::new(Kind::Shlock, scene);
    // strace prints the path of each descriptor.
    stage.run(&["-y".into()]);
    let mut calls = Vec::new();
    for (boundary, line) in stage.trace() {
        let is_directory = line.contains("O_DIRECTORY") || line.contains("O_PATH");
        // Where there are no process descriptors, the sysinfo crate detects zombies. For that it makes more calls.
        let asks_sysinfo = line.contains("/proc");
        let repeats = ["pread64", "getdents64"].contains(&boundary.call) && calls.last() == Some(&boundary.call);
        if DECIDING.contains(&boundary.call) && !is_directory && !asks_sysinfo && !repeats {
            calls.push(boundary.call);
        }
    }
    calls
}

fn by_model(scene: Scene) -> Vec<&'static str> {
    let ours = if cfg!(tokio_lockfile_test_portable) { Program::Portable } else { Program::Ours };
    let model = Model::new(&[ours, Program::Inn]);
    let mut state = model.start();
    set(scene, &mut state);
    let mut calls = Vec::new();
    loop {
        calls.extend(model.calls(&state, 0));
        model.step(&mut state, 0);
        if state.processes[0].expect("the process takes part").at == At::Idle {
            return calls;
        }
    }
}

fn set(scene: Scene, state: &mut State<At>) {
    if scene == Scene::Free {
        return;
    }
    let stale = state.create();
    state.link(stale, Name::Lock);
    match scene {
        Scene::Leftovers => {
            state.file_mut(stale).record = Record::Foreign(None);
            state.link(stale, Name::Breaking);
            state.link(stale, Name::Second(1));
            state.local_mut(1).at = At::Dead;
        }
        Scene::Held => {
            state.file_mut(stale).record = Record::Marked(Some(1));
            state.local_mut(1).at = At::Held;
            state.local_mut(1).created = Some(stale);
            state.try_lock(1, stale);
        }
        Scene::Unfinished => {
            state.file_mut(stale).record = Record::Marked(None);
            state.link(stale, Name::Creating);
        }
        _ => state.file_mut(stale).record = Record::Marked(None),
    }
}
