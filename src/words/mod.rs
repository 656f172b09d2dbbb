//! The vocabulary of the crate: what every storey may name. There is no behaviour here.

pub(crate) mod error;
pub(crate) mod escape;
pub(crate) mod holder;
pub(crate) mod kind;
pub(crate) mod mode;
pub(crate) mod options;
mod percent;
pub(crate) mod server_url;
pub(crate) mod target;
pub(crate) mod trace;
pub(crate) mod url;
#[cfg(feature = "serde")]
mod url_serde;
