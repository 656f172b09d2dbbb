//! Processes that fight over one lock while some of them are stopped and killed at random moments and others are
//! delayed at the system calls that matter. Two witnesses that know nothing of each other watch for a second holder: a
//! marker that is put up on entry and taken down on exit, and a counter that nobody increments atomically. A port of
//! PEAK's `SHLockFile`, known to be unsafe, goes through the same: it must be caught, else this test sees nothing.
//!
//! ```text
//! SHLOCK=/usr/lib/news/bin/shlock cargo test --test stress
//! SHLOCK=/usr/lib/news/bin/shlock cargo test --release --test stress -- --acquisitions 1000000
//! cargo test --test stress -- --campaign "shlock alone" --dir /dev/shm
//! ```
//!
//! `--acquisitions` is the sum over the campaigns with our locks. Needs strace, a C compiler, flock(1) of util-linux and
//! INN's shlock(1), which `SHLOCK` names; a tool that is missing makes the test fail. Linux.

#[cfg(target_os = "linux")]
mod arena;
#[cfg(target_os = "linux")]
mod campaign;
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
