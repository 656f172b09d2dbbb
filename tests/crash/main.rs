//! At every system call of an attempt, a wait and a release, the process is killed, or is stopped, or the call fails.
//!
//! ```text
//! cargo test --test crash
//! ```
//!
//! A worker, which is another process of this program, runs under strace(1). strace injects a signal or an error at the
//! N-th call with a given name. All tests run on tmpfs, because there a worker makes all its calls on one thread.

mod conformance;
mod faults;
mod kills;
#[path = "../model/mod.rs"]
#[allow(dead_code, reason = "the search is for tests/model")]
mod model;
mod stage;
mod stops;
mod worker;

fn main() {
    if std::env::args().nth(1).as_deref() == Some(worker::ROLE) {
        return worker::main();
    }
    conformance::run();
    kills::run();
    stops::run();
    faults::run();
}
