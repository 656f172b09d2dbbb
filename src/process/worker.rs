//! Who can wait for a lock that it holds itself.

use std::collections::HashMap;
use std::hash::Hash;

/// A task, or a thread that blocks on a future.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
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

/// Those who hold a lock together, and how often each of them does. There may be many thousands.
#[derive(Debug)]
pub(super) struct Workers<W = Worker>(HashMap<W, usize>);

impl<W: Eq + Hash> Workers<W> {
    pub(super) fn new() -> Self {
        Self(HashMap::new())
    }

    pub(super) fn enter(&mut self, worker: W) {
        *self.0.entry(worker).or_default() += 1;
    }

    pub(super) fn leave(&mut self, worker: W) {
        let is_last = self.0.get_mut(&worker).is_some_and(|times| {
            *times -= 1;
            *times == 0
        });
        if is_last {
            self.0.remove(&worker);
        }
    }

    pub(super) fn contains(&self, worker: &W) -> bool {
        self.0.contains_key(worker)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::hash::Hasher;

    use super::*;

    #[test]
    fn who_has_entered_twice_leaves_twice() {
        let mut workers = Workers::new();
        let worker = Worker::current();
        workers.enter(worker);
        workers.enter(worker);
        workers.leave(worker);
        assert!(workers.contains(&worker));
        workers.leave(worker);
        assert!(!workers.contains(&worker));
        workers.leave(worker);
    }

    /// Counts how often it is compared.
    struct Compared<'a>(usize, &'a Cell<usize>);

    impl PartialEq for Compared<'_> {
        fn eq(&self, other: &Self) -> bool {
            self.1.set(self.1.get() + 1);
            self.0 == other.0
        }
    }

    impl Eq for Compared<'_> {}

    impl Hash for Compared<'_> {
        fn hash<H: Hasher>(&self, state: &mut H) {
            self.0.hash(state);
        }
    }

    #[test]
    fn of_many_each_leaves_with_little_work() {
        const MANY: usize = 10_000;
        let comparisons = Cell::new(0);
        let mut workers = Workers::new();
        (0..MANY).for_each(|number| workers.enter(Compared(number, &comparisons)));
        (0..MANY).for_each(|number| workers.leave(Compared(number, &comparisons)));
        assert!(comparisons.get() < MANY * 4, "{} comparisons", comparisons.get());
        assert!(workers.0.is_empty());
    }
}
