//! What wakes a wait for its next try.

/// Why a wait was woken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::engine::file) enum WakeUp {
    /// Something happened to the file, or to the process that holds it.
    Event,
    /// No event: a look for safety, or the end of a pause.
    Probe,
}
