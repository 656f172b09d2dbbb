//! The shlock protocol in a model: every interleaving of its system calls, with a crash possible before each.
//!
//! ```text
//! cargo test --test model
//! cargo test --release --test model -- --ignored --nocapture    # the large ones
//! ```
//!
//! The search is a plain one of our own, because "never stuck" is a question to the whole graph, backwards: from which
//! states can a lock be had at all?

mod protocol;
mod search;
mod state;

use protocol::Kind::{self, Inn, NetBsd, Ours, Peak};
use protocol::{Model, Without};
use search::Found;

fn search(kinds: &[Kind], without: Without) -> Found {
    let mut model = Model::new(kinds);
    model.without = without;
    let found = model.search();
    let steps = found.violation.as_ref().map(Vec::len);
    println!("{kinds:?} {without:?}: {} states, {} stuck, violation after {steps:?} steps", found.states, found.stuck);
    found
}

fn is_safe_and_never_stuck(kinds: &[Kind]) {
    let found = search(kinds, Without::default());
    assert!(found.violation.is_none() && found.stuck == 0, "{kinds:?}");
}

#[test]
fn two_of_ours() {
    is_safe_and_never_stuck(&[Ours, Ours]);
}

#[test]
#[ignore = "large"]
fn three_of_ours() {
    is_safe_and_never_stuck(&[Ours, Ours, Ours]);
}

#[test]
fn ours_beside_inn() {
    is_safe_and_never_stuck(&[Ours, Inn]);
}

#[test]
#[ignore = "large"]
fn two_of_ours_beside_inn() {
    is_safe_and_never_stuck(&[Ours, Ours, Inn]);
}

#[test]
#[ignore = "large"]
fn ours_beside_two_of_inn() {
    is_safe_and_never_stuck(&[Ours, Inn, Inn]);
}

#[test]
fn ours_beside_netbsd() {
    is_safe_and_never_stuck(&[Ours, NetBsd]);
}

/// The positive control: a search that does not find this finds nothing.
#[test]
fn peak_has_two_holders() {
    assert!(search(&[Peak, Peak], Without::default()).violation.is_some());
}

#[test]
fn inn_and_netbsd_alone_are_safe_and_can_be_stuck_for_ever() {
    for kind in [Inn, NetBsd] {
        let found = search(&[kind, kind], Without::default());
        assert!(found.violation.is_none());
        assert_ne!(found.stuck, 0);
    }
}

#[test]
fn each_safeguard_is_needed() {
    let unsafe_without = |kinds: &[Kind], without| assert!(search(kinds, without).violation.is_some(), "{without:?}");
    unsafe_without(&[Ours, Ours], Without { look_after_flock: true, ..Without::default() });
    unsafe_without(&[Ours, Ours], Without { flock_before_link: true, ..Without::default() });
    unsafe_without(&[Ours, Ours], Without { unlink_before_unlock: true, ..Without::default() });
    unsafe_without(&[Ours, Inn], Without { link_discipline: true, ..Without::default() });
    unsafe_without(&[Ours, Inn], Without { look_for_breakers: true, ..Without::default() });
    let found = search(&[Ours, Inn], Without { purge: true, ..Without::default() });
    assert_ne!(found.stuck, 0);
}
