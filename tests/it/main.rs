//! Behaviour of every kind, on a machine that has only Rust.
#![cfg(unix)]

mod bad_input;
mod behaviour;
mod fuzz;
mod processes;
mod shlock;
mod support;
#[cfg(target_os = "linux")]
mod waiting;
