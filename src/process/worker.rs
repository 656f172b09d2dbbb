//! Who can wait for a lock that it holds itself.

/// A task, or a thread that blocks on a future.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Worker {
    Task(tokio::task::Id),
    Thread(std::thread::ThreadId),
}

impl Worker {
    pub(super) fn current() -> Self {
        match tokio::task::try_id() {
            Some(id) => Self::Task(id),
            None => Self::Thread(std::thread::current().id()),
        }
    }
}
