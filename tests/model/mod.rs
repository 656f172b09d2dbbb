//! The model of the shlock protocol: tests/model searches it, tests/crash compares it with the program.

pub(crate) mod protocol;
pub(crate) mod search;
pub(crate) mod state;
