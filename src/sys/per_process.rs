//! A value that every process has for itself, also a forked child.
//!
//! A child gets a copy of its parent's memory, but of the parent's threads only the one that forked. So a mutex that
//! another thread had stays locked in the child for ever, and a thread that the parent relies on is not there. The child
//! therefore leaves the copies alone, and starts with a new value.

use std::sync::OnceLock;

use super::current_pid;

/// The values of this process and of its ancestors, as far as it was forked from them.
#[derive(Debug)]
pub(crate) struct PerProcess<T> {
    value: OnceLock<(u32, T)>,
    child: OnceLock<Box<PerProcess<T>>>,
}

impl<T> PerProcess<T> {
    pub(crate) const fn new() -> Self {
        Self { value: OnceLock::new(), child: OnceLock::new() }
    }

    /// The value of this process, made by `init` if there is none yet.
    pub(crate) fn get_or_init(&self, init: impl FnOnce() -> T) -> &T {
        let us = current_pid();
        let mut generation = self;
        let mut init = Some(init);
        loop {
            let make = || (us, init.take().expect("called once")());
            let (process, value) = generation.value.get_or_init(make);
            if *process == us {
                return value;
            }
            generation = generation.child.get_or_init(|| Box::new(Self::new()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_has_a_value_of_its_own() {
        let values = PerProcess::new();
        values.value.set((std::process::id() + 1, "parent")).unwrap();
        assert_eq!(*values.get_or_init(|| "child"), "child");
        assert_eq!(*values.get_or_init(|| "another"), "child");
        assert_eq!(values.value.get().unwrap().1, "parent");
    }
}
