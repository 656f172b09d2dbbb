//! What everything costs, beside the raw system calls and beside others, in one run.
//!
//! ```text
//! cargo bench                 # the whole report; writes docs/benchmarks.md and docs/benchmarks.svg
//! cargo bench -- --quick      # every row with few rounds, to see that it works; writes nothing
//! cargo bench -- --releases 10000     # only the wake-ups, that many of each style
//! ```
//!
//! Machines differ and are noisy, so only the ratios mean anything: whatever is compared takes turns within one loop.
#![expect(clippy::incompatible_msrv, reason = "only the library keeps to the oldest Rust")]
#![expect(clippy::disallowed_methods, reason = "the blocking pool is what some rows compare with")]

mod bare;
mod chart;
mod fairness;
mod handover;
mod outcome;
mod pending;
mod tasks;
mod timeout;
mod uncontended;
mod wakeups;

use outcome::Row;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["--hold", url] => handover::hold(url),
        ["--compete", kind, hold, path] => fairness::compete(kind, hold, path),
        ["--pend", kind, dir] => pending::pend(kind, dir),
        ["--time-out", url] => timeout::time_out(url),
        ["--releases", count] => wakeups::releases(count.parse().unwrap()).iter().for_each(|row| println!("{row}")),
        ["--quick"] => _ = report(true),
        [] => chart::write(&report(false)),
        _ => panic!("unknown arguments {words:?}; see the header of benches/report/main.rs"),
    }
}

fn report(is_quick: bool) -> Vec<Row> {
    let groups: [fn(bool) -> Vec<Row>; 7] =
        [uncontended::rows, handover::rows, tasks::rows, pending::rows, timeout::rows, fairness::rows, wakeups::rows];
    let mut rows = Vec::new();
    for group in groups {
        for row in group(is_quick) {
            println!("{row}");
            rows.push(row);
        }
    }
    rows
}
