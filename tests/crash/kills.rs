//! The process is killed before every system call.

use crate::stage::{Boundary, Stage, boundaries, each_scene};

pub(crate) fn run() {
    let (mut tried, mut slowest) = (0, Default::default());
    each_scene(|kind, scene| {
        for Boundary { call, number } in boundaries(kind, scene) {
            let mut stage = Stage::new(kind, scene);
            stage.run(&["-e".into(), format!("inject={call}:signal=KILL:when={number}")]);
            assert!(!stage.report().contains("error"), "{kind:?} {scene:?} {call} {number}: {}", stage.report());
            let delay = stage.is_in_order(&format!("{kind:?} {scene:?}: killed at {call} {number}"));
            slowest = delay.max(slowest);
            tried += 1;
        }
    });
    println!("killed at {tried} boundaries; the slowest takeover took {slowest:?}");
}
