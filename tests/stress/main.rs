//! Many processes compete for one lock. Some are stopped or killed at random moments, others are delayed at the
//! critical system calls. Two independent witnesses look for a second holder. The first is a marker: a process creates
//! it when it enters the critical section, and removes it when it leaves. The second is a counter that is incremented
//! without atomic operations. Readers leave markers too, and the counter must not change while they read. A port of
//! PEAK's `SHLockFile`, which is known to be unsafe, runs in the same way: the test must detect its violations,
//! otherwise the test proves nothing.
//!
//! ```text
//! SHLOCK=/usr/lib/news/bin/shlock cargo test --test stress
//! SHLOCK=/usr/lib/news/bin/shlock cargo test --release --test stress -- --acquisitions 1000000
//! cargo test --test stress -- --campaign "shlock alone" --dir /dev/shm
//! ```
//!
//! In the campaigns with chaos, processes also fork while they wait and while they hold the lock, and both go on; runtimes
//! end in the middle of a wait; guards outlive their runtimes; holders remove their lock file.
//!
//! `--acquisitions` is the total for all campaigns with our locks.
//! The test needs Linux, strace, a C compiler, flock(1) of util-linux and INN's shlock(1), whose path is in `SHLOCK`.
//! If a tool is missing, the test fails.

#[cfg(target_os = "linux")]
mod arena;
#[cfg(target_os = "linux")]
mod campaign;
#[cfg(target_os = "linux")]
mod chaos;
#[cfg(target_os = "linux")]
mod supervisor;
#[cfg(target_os = "linux")]
mod worker;

#[cfg(target_os = "linux")]
fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match &args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["worker", role, dir, instance] => worker::work(role, dir.as_ref(), instance.parse().unwrap()),
        ["section", dir, instance] => worker::section(dir.as_ref(), instance.parse().unwrap()),
        options => campaign::run(options),
    }
}

#[cfg(not(target_os = "linux"))]
fn main() {}
