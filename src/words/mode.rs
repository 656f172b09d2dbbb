//! How many may hold a lock at once.

/// The mode in which a lock is wanted or held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Mode {
    /// One holder.
    Exclusive,
    /// Any number of holders, but none beside an exclusive one.
    Shared,
}
