//! A nemesis for the locks on servers. Clients in processes of their own take locks in every way, while faults are made to
//! them, to the network, to the servers and to what is between, all at the same time and as a seed says. Each client writes
//! down what it sees, on one clock for all. A checker reads it: no two of them ever hold a lock at the same time, beside the
//! exceptions that the documentation names; tokens only grow; after the last fault everything is soon as it should be, and
//! nothing is left behind.
//!
//! ```text
//! cargo test --all-features --test nemesis -- --engine etcd --minutes 2
//! cargo test --all-features --test nemesis -- --engine postgres --setup pgbouncer --minutes 10 --seed 42
//! cargo test --all-features --test nemesis -- --engine postgres --setup direct --client naive
//! cargo test --all-features --test nemesis -- --engine etcd --setup three --faults HangDisk,CutClient --lease 2
//! ```
//!
//! The seed of a run is printed first. It stands for the schedule of the faults, and for the setup where none is named; so
//! the same faults come again, but the machine never does exactly the same. With `--client naive` (PostgreSQL's advisory
//! locks without a lease) or `--client go` (the mutex of etcd's Go client) the checker has to find a violation.
//! `tests/nemesis/mutations` has the faults of this crate that it has to find, too. With `--faults` only these faults are
//! made (`schedule.rs` lists them), and with `--lease` all clients have this lease, in seconds.
//!
//! A full disk of PostgreSQL is a limit on the size of its files, by prlimit(1). A slow network is tc-tbf(8), because
//! not every kernel has tc-netem(8).
//!
//! Needs Linux, root, and the programs that the tests of PostgreSQL and etcd need.

#[cfg(target_os = "linux")]
mod campaign;
#[cfg(target_os = "linux")]
mod checker;
#[cfg(target_os = "linux")]
mod client;
#[cfg(target_os = "linux")]
#[path = "../etcd/cluster.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod cluster;
#[cfg(target_os = "linux")]
mod desk;
#[cfg(target_os = "linux")]
mod etcd;
#[cfg(target_os = "linux")]
mod fleet;
#[cfg(target_os = "linux")]
mod history;
#[cfg(target_os = "linux")]
mod naive;
#[cfg(target_os = "linux")]
#[path = "../etcd/network.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod network;
#[cfg(target_os = "linux")]
#[path = "../servers/nginx.rs"]
mod nginx;
#[cfg(target_os = "linux")]
mod postgres;
#[cfg(target_os = "linux")]
mod program;
#[cfg(target_os = "linux")]
mod schedule;
#[cfg(target_os = "linux")]
#[path = "../postgres/server.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod server;
#[cfg(target_os = "linux")]
mod setting;
#[cfg(target_os = "linux")]
mod stage;

/// What the modules of other tests need.
#[cfg(target_os = "linux")]
mod support {
    /// The limit for a hang.
    pub(crate) const HANG: std::time::Duration = std::time::Duration::from_secs(60);
}

#[cfg(target_os = "linux")]
fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match &args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [kind @ ("client" | "naive"), journal, url, number, seed] => {
            history::CLIENT.set(number.parse().unwrap()).unwrap();
            let work = if *kind == "naive" { naive::work } else { client::work };
            work(journal.as_ref(), url, seed.parse().unwrap());
        }
        options => campaign::run(options),
    }
}

#[cfg(not(target_os = "linux"))]
fn main() {}
