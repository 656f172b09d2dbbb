//! Every system call of a try, a wait and a release, as a place where the process is killed, is stopped, or is refused.
//!
//! ```text
//! cargo test --test crash
//! ```
//!
//! A worker, which is this program too, runs under strace(1), which injects a signal or an error at the N-th call of a
//! kind. All happens on tmpfs, where a worker makes all its calls on one thread.

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
