//! Small tools that know nothing of locks.

pub(crate) mod backoff;
pub(crate) mod blocking;
pub(crate) mod random;
pub(crate) mod timer;
