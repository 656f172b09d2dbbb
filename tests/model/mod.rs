//! The model of the shlock protocol. tests/model searches it, and tests/crash compares it with the program.

mod ours;
mod peers;
pub(crate) mod protocol;
pub(crate) mod search;
pub(crate) mod state;
