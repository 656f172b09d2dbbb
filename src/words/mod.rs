//! The vocabulary of the crate: what every storey may name, and how it is shown.

pub(crate) mod error;
pub(crate) mod escape;
pub(crate) mod holder;
pub(crate) mod kind;
pub(crate) mod mode;
pub(crate) mod options;
pub(crate) mod percent;
pub(crate) mod server_url;
pub(crate) mod target;
pub(crate) mod trace;
