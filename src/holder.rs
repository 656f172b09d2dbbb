//! Who holds a lock.

use std::fmt;
use std::time::{Duration, SystemTime};

use crate::process;

/// Who holds a lock, as far as that can be known.
///
/// A PID is what the kernel tells, or else what the holder wrote. A holder in another PID namespace (a container) wrote
/// the number it has there, and the kernel tells the one it has here, if the container is inside ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    pid: u32,
    name: Option<String>,
    since: Option<SystemTime>,
}

impl Holder {
    /// Looks up the name of the process `pid`. If that process started after `since`, the PID was recycled or comes
    /// from another PID namespace, and the name would be a stranger's.
    pub(crate) fn look_up(pid: u32, since: Option<SystemTime>) -> Self {
        // Start times have whole seconds, and the record is written a moment after the start at the earliest.
        const SLACK: Duration = Duration::from_secs(2);
        let is_known = |process: &process::Description| {
            since.is_none_or(|since| process.started.duration_since(since).unwrap_or_default() <= SLACK)
        };
        let name = process::describe(pid).filter(is_known).map(|process| process.name);
        Self { pid, name, since }
    }

    /// PID of the holder; 0 if somebody holds the lock but the kernel does not tell who.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Name of the holder's process, if it is visible from here.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// When the lock was taken by this process, where the lock file tells. It is wall-clock time: only to be shown,
    /// never to decide by.
    pub fn since(&self) -> Option<SystemTime> {
        self.since
    }
}

/// `pid 4321 (backupd), for 3m 12s`
impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pid {
            0 => f.write_str("an unknown process")?,
            pid => write!(f, "pid {pid}")?,
        }
        if let Some(name) = &self.name {
            write!(f, " ({name})")?;
        }
        if let Some(held) = self.since.and_then(|since| since.elapsed().ok()) {
            write!(f, ", for {}", Span(held))?;
        }
        Ok(())
    }
}

/// `, held by …` behind an error or a log message, or nothing.
pub(crate) struct Brief<'a>(pub(crate) Option<&'a Holder>);

impl fmt::Display for Brief<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(holder) => write!(f, ", held by {holder}"),
            None => Ok(()),
        }
    }
}

/// A time span in its two largest units.
struct Span(Duration);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        match seconds {
            0..60 => write!(f, "{seconds}s"),
            60..3_600 => write!(f, "{}m {}s", seconds / 60, seconds % 60),
            3_600..86_400 => write!(f, "{}h {}m", seconds / 3_600, seconds / 60 % 60),
            _ => write!(f, "{}d {}h", seconds / 86_400, seconds / 3_600 % 24),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(held: Option<u64>) -> Holder {
        Holder {
            pid: 4321,
            name: Some("backupd".into()),
            since: held.map(|seconds| SystemTime::now() - Duration::from_secs(seconds)),
        }
    }

    #[test]
    fn reads_like_a_sentence() {
        assert_eq!(holder(None).to_string(), "pid 4321 (backupd)");
        assert_eq!(holder(Some(192)).to_string(), "pid 4321 (backupd), for 3m 12s");
        assert_eq!(holder(Some(7_260)).to_string(), "pid 4321 (backupd), for 2h 1m");
        assert_eq!(holder(Some(180_000)).to_string(), "pid 4321 (backupd), for 2d 2h");
    }

    #[test]
    fn a_process_younger_than_the_lock_is_not_named() {
        let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1);
        assert_eq!(Holder::look_up(std::process::id(), Some(long_ago)).name(), None);
        assert!(Holder::look_up(std::process::id(), Some(SystemTime::now())).name().is_some());
    }

    /// Anybody can set a file's times.
    #[cfg(unix)]
    #[test]
    fn a_lock_from_the_end_of_time_is_looked_up() {
        let last = SystemTime::UNIX_EPOCH + Duration::from_secs(i64::MAX as u64);
        assert!(Holder::look_up(std::process::id(), Some(last)).to_string().contains("pid"));
    }
}
