//! The cost of each operation, compared with the raw system calls and with other crates, in one run.
//!
//! ```text
//! cargo bench                 # the whole report; writes docs/benchmarks.md and docs/benchmarks.svg
//! cargo bench -- --picture    # what the picture shows; writes docs/benchmarks.svg
//! cargo bench -- --quick      # every row with few rounds, as a test of the report; writes target/benchmarks.svg
//! cargo bench -- fairness     # one group of rows; writes nothing
//! cargo bench --features postgres -- postgres     # the rows of an engine need its server
//! cargo bench -- --releases 10000     # the wake-ups, with this number of releases of each style
//! ```
//!
//! Machines differ, and other programs disturb the measurement. So only the ratios are meaningful: the operations that
//! are compared run in turn within one loop.
#![expect(clippy::incompatible_msrv, reason = "only the library supports the oldest Rust version")]
#![expect(clippy::disallowed_methods, reason = "some rows compare with the blocking pool")]

mod bare;
mod chart;
#[cfg(feature = "etcd")]
mod etcd;
mod fairness;
mod handover;
#[cfg(feature = "postgres")]
mod idle_waits;
mod outcome;
mod pending;
mod picture;
#[cfg(feature = "postgres")]
mod postgres;
mod readers;
mod tasks;
mod timeout;
mod uncontended;
mod wakeups;

/// For the test tools that the rows of the engines use.
#[cfg(any(feature = "postgres", feature = "etcd"))]
mod support {
    pub(crate) const HANG: std::time::Duration = std::time::Duration::from_secs(60);
}
#[cfg(feature = "etcd")]
#[path = "../../tests/etcd/network.rs"]
#[allow(dead_code, reason = "the tests use the rest")]
mod network;

use outcome::Row;

fn main() {
    // Cargo starts it in benches/.
    std::env::set_current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).unwrap();
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["--hold", url] => handover::hold(url),
        ["--ring"] => handover::ring(),
        ["--compete", kind, hold, path] => fairness::compete(kind, hold, path),
        ["--read", kind, path] => readers::read(kind, path),
        #[cfg(feature = "postgres")]
        ["--first", whose, url] => postgres::first_attempt(whose, url),
        #[cfg(feature = "postgres")]
        ["--hold-many", whose, url, count] => postgres::hold_many(whose, url, count.parse().unwrap()),
        #[cfg(feature = "postgres")]
        ["--hold-bare", url] => postgres::hold_bare(url),
        ["--pend", kind, dir] => pending::pend(kind, dir),
        ["--time-out", url] => timeout::time_out(url),
        ["--releases", count] => wakeups::releases(count.parse().unwrap()).iter().for_each(|row| println!("{row}")),
        ["--quick"] => std::fs::write("target/benchmarks.svg", picture::draw(&report(true, |_| true))).unwrap(),
        [] => chart::write(&report(false, |_| true)),
        ["--picture"] => {
            let wanted = ["uncontended", "handover", "pending", "timeout"];
            std::fs::write("docs/benchmarks.svg", picture::draw(&report(false, |name| wanted.contains(&name))))
                .unwrap();
        }
        [group] => assert!(!report(false, |name| name == group).is_empty(), "no group is called {group:?}"),
        _ => panic!("unknown arguments {words:?}; see the header of benches/report/main.rs"),
    }
}

/// A group's name, and the function that measures its rows. The argument asks for few rounds.
type Group = (&'static str, fn(bool) -> Vec<Row>);

const GROUPS: &[Group] = &[
    ("uncontended", uncontended::rows),
    ("handover", handover::rows),
    ("tasks", tasks::rows),
    ("pending", pending::rows),
    ("timeout", timeout::rows),
    ("fairness", fairness::rows),
    ("readers", readers::rows),
    ("wakeups", wakeups::rows),
    #[cfg(feature = "postgres")]
    ("postgres", postgres::rows),
    #[cfg(feature = "postgres")]
    ("idle_waits", idle_waits::rows),
    #[cfg(feature = "etcd")]
    ("etcd", etcd::rows),
];

fn report(is_quick: bool, is_wanted: impl Fn(&str) -> bool) -> Vec<Row> {
    let mut rows = Vec::new();
    for (_, group) in GROUPS.iter().filter(|(name, _)| is_wanted(name)) {
        for row in group(is_quick) {
            println!("{row}");
            rows.push(row);
        }
    }
    rows
}
