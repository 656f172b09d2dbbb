//! The options of a lock. [`LockFileBuilder`](crate::LockFileBuilder) says what each is for.

use std::time::Duration;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Options {
    pub(crate) mode: Option<u32>,
    /// Whether the umask leaves `mode` as it is.
    pub(crate) is_mode_exact: bool,
    pub(crate) backoff: (Duration, Duration),
    pub(crate) break_stale_anywhere: bool,
    pub(crate) poll_only: bool,
    pub(crate) record: bool,
    pub(crate) create_dirs: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            mode: None,
            is_mode_exact: false,
            backoff: (Duration::from_millis(1), Duration::from_millis(100)),
            break_stale_anywhere: false,
            poll_only: false,
            record: true,
            create_dirs: false,
        }
    }
}
