//! A model of the shlock protocol: every order of its system calls is tried, with a possible crash before each call.
//!
//! ```text
//! cargo test --test model
//! cargo test --release --test model -- --include-ignored --nocapture    # also the large searches
//! ```
//!
//! We use our own simple search. To check "never stuck", it must go through the whole graph backwards: it finds the
//! states from which a process can still obtain the lock.

#[path = "mod.rs"]
#[allow(dead_code, reason = "the names of the calls are for tests/crash")]
mod model;

use model::protocol::Kind::{self, Inn, Named, NetBsd, Ours, Peak, Portable};
use model::protocol::{Model, Without};
use model::search::Found;

fn search(kinds: &[Kind], without: Without) -> Found {
    let mut model = Model::new(kinds);
    model.without = without;
    let found = model.search();
    let steps = found.violation.as_ref().map(Vec::len);
    if std::env::var_os("SHOW").is_some() {
        for s in found.violation.iter().flatten() {
            println!("  {s:?}");
        }
    }
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

/// The owner of a stale file, or an administrator, may remove it at any time.
fn search_beside_an_owner(kinds: &[Kind], without: Without) -> Found {
    let found = Model { owner_removes: true, without, ..Model::new(kinds) }.search();
    println!("{kinds:?}, and an owner who removes: {} states, {} stuck", found.states, found.stuck);
    found
}

#[track_caller]
fn is_safe_and_never_stuck_beside_an_owner(kinds: &[Kind]) {
    let found = search_beside_an_owner(kinds, Without::default());
    assert!(found.violation.is_none() && found.stuck == 0, "{kinds:?}: {:?}", found.violation);
}

#[test]
#[ignore = "large"]
fn two_of_ours_beside_an_owner_who_removes_the_stale_file() {
    is_safe_and_never_stuck_beside_an_owner(&[Ours, Ours]);
    is_safe_and_never_stuck_beside_an_owner(&[Named, Named]);
    is_safe_and_never_stuck_beside_an_owner(&[Portable, Portable]);
}

#[test]
#[ignore = "large"]
fn three_of_ours_beside_an_owner_who_removes_the_stale_file() {
    is_safe_and_never_stuck_beside_an_owner(&[Ours, Ours, Ours]);
}

#[test]
fn two_holders_beside_an_owner_if_a_new_holder_does_not_look_for_a_breaker() {
    let without = Without { look_for_a_breaker: true, ..Without::default() };
    assert!(search_beside_an_owner(&[Ours, Ours], without).violation.is_some());
}

#[test]
#[ignore = "large"]
fn two_of_ours_where_files_need_names() {
    is_safe_and_never_stuck(&[Named, Named]);
    is_safe_and_never_stuck(&[Ours, Named]);
}

#[test]
#[ignore = "large"]
fn two_of_ours_where_files_need_names_and_are_linked_by_them() {
    is_safe_and_never_stuck(&[Portable, Portable]);
}

#[test]
#[ignore = "large"]
fn three_of_ours() {
    is_safe_and_never_stuck(&[Ours, Ours, Ours]);
}

#[test]
#[ignore = "large"]
fn three_of_ours_where_files_need_names_and_are_linked_by_them() {
    is_safe_and_never_stuck(&[Portable, Portable, Portable]);
}

#[test]
#[ignore = "large"]
fn ours_beside_inn() {
    is_safe_and_never_stuck(&[Ours, Inn]);
}

#[test]
#[ignore = "large"]
fn ours_beside_inn_where_files_need_names_and_are_linked_by_them() {
    is_safe_and_never_stuck(&[Portable, Inn]);
}

#[test]
#[ignore = "large"]
fn ours_beside_netbsd() {
    is_safe_and_never_stuck(&[Ours, NetBsd]);
}

/// The positive control: PEAK's protocol is known to be unsafe. If the search does not notice, it proves nothing.
#[test]
fn peak_has_two_holders() {
    assert!(search(&[Peak, Peak], Without::default()).violation.is_some());
}

#[test]
#[ignore = "large"]
fn inn_and_netbsd_alone_are_safe_and_can_be_stuck_for_ever() {
    for kind in [Inn, NetBsd] {
        let found = search(&[kind, kind], Without::default());
        assert!(found.violation.is_none());
        assert_ne!(found.stuck, 0);
    }
}

#[track_caller]
fn is_unsafe(kinds: &[Kind], without: Without) {
    assert!(search(kinds, without).violation.is_some());
}

#[test]
fn two_holders_without_a_look_after_flock() {
    is_unsafe(&[Ours, Ours], Without { look_after_flock: true, ..Without::default() });
}

#[test]
fn two_holders_with_flock_after_link() {
    is_unsafe(&[Ours, Ours], Without { flock_before_link: true, ..Without::default() });
}

#[test]
fn two_holders_with_unlock_before_unlink() {
    is_unsafe(&[Ours, Ours], Without { unlink_before_unlock: true, ..Without::default() });
}

#[test]
fn two_holders_without_link_discipline_beside_inn() {
    is_unsafe(&[Ours, Inn], Without { link_discipline: true, ..Without::default() });
}

#[test]
fn two_holders_without_a_look_for_breakers_beside_inn() {
    is_unsafe(&[Ours, Inn], Without { look_for_breakers: true, ..Without::default() });
}

/// Each of the first two checks prevents the same error as the last one, so it takes two omissions to get two holders.
#[test]
fn two_holders_without_two_of_the_checks_of_a_file_created_with_a_name() {
    let without = Without { look_published: true, ..Without::default() };
    is_unsafe(&[Portable, Portable], Without { look_at_creating: true, ..without });
    is_unsafe(&[Portable, Portable], Without { flock_before_clear: true, ..without });
}

/// When the private name of a dead breaker is removed, it may belong to a living breaker, which has the same PID.
#[test]
#[ignore = "large"]
fn two_holders_without_a_look_before_the_purge_beside_inn() {
    is_unsafe(&[Ours, Inn], Without { look_before_purge: true, ..Without::default() });
}

#[test]
#[ignore = "large"]
fn stuck_for_ever_without_the_purge_beside_inn() {
    let found = search(&[Ours, Inn], Without { purge: true, ..Without::default() });
    assert_ne!(found.stuck, 0);
}
