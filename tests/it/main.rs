//! Behaviour of every kind, on a machine that has only Rust.

#[cfg(unix)]
mod bad_input;
mod bad_work;
mod behaviour;
mod blocking;
mod create_dirs;
#[cfg(unix)]
mod exact_mode;
#[cfg(unix)]
mod flock;
#[cfg(unix)]
mod fork;
#[cfg(unix)]
mod fork_files;
mod handles;
mod handover;
mod kinds;
mod late;
mod logging;
mod logging_leaders;
#[cfg(unix)]
mod loss;
mod native;
#[cfg(unix)]
mod no_write;
#[cfg(target_os = "linux")]
mod other_program;
mod ports;
mod processes;
#[cfg(target_os = "linux")]
mod runtimes;
mod semaphore;
mod shared;
mod shared_files;
#[cfg(unix)]
mod shlock;
mod singleton;
mod support;
mod texts;
#[cfg(target_os = "linux")]
mod waiting;
#[cfg(windows)]
mod windows;
#[cfg(any(feature = "postgres", feature = "etcd"))]
mod wrong_servers;
