//! What the log says only once: a service connects often.

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};

use crate::sys::per_process::PerProcess;

pub(crate) struct Said<T: 'static>(PerProcess<Mutex<HashSet<T>>>);

impl<T: Eq + Hash> Said<T> {
    pub(crate) const fn new() -> Self {
        Self(PerProcess::new())
    }

    /// Whether this process has not said it yet. Whoever is told so, says it.
    pub(crate) fn is_new(&self, what: T) -> bool {
        self.0.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner).insert(what)
    }
}
