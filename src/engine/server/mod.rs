//! What the engines on servers have in common.

pub(super) mod driver;
pub(super) mod lease;
pub(super) mod loss;
pub(super) mod reply;
pub(super) mod said;
pub(super) mod socket;
pub(super) mod span;
pub(super) mod steps;
#[cfg(any(feature = "postgres-tls", feature = "etcd"))]
pub(super) mod tls;
