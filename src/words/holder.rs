//! Who holds a lock.

use std::fmt;
use std::time::{Duration, SystemTime};

use super::escape::Escaped;

/// Who holds a lock, as far as that can be known.
///
/// For a lock on a file, a process is named only if it has the lock, as far as the kernel shows that. The PID is the one
/// that it has in our own PID namespace. A holder in another container has none here, so its PID is 0, whatever number it
/// wrote into the file. On Unix systems other than Linux the kernel shows nothing, and there are no PID namespaces: there
/// it is the PID in the file, if such a process lives. Other programs that lock with a PID file alone, such as shlock(1),
/// are named by the PID in it.
///
/// For a lock on a server, the holder has told the server its PID, name and host. A holder of another program has told
/// less: PostgreSQL then shows the PID of its own server process, and etcd shows none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    pid: u32,
    name: Option<String>,
    host: Option<String>,
    since: Option<SystemTime>,
    /// Whether it is known to be this process.
    is_us: bool,
}

/// The longest file name and DNS name. No system gives a process or a host a longer name, but a server may tell one.
const LONGEST_NAME: usize = 255;

fn cut_off(mut name: String) -> String {
    if let Some((end, _)) = name.char_indices().nth(LONGEST_NAME) {
        name.truncate(end);
    }
    name
}

impl Holder {
    pub(crate) fn new(pid: u32, name: Option<String>, since: Option<SystemTime>) -> Self {
        Self { pid, name: name.map(cut_off), host: None, since, is_us: false }
    }

    /// The same on the host of this name or address, as a server tells it.
    #[allow(dead_code, reason = "for the engines, which are features")]
    pub(crate) fn on_host(self, host: Option<String>) -> Self {
        Self { host: host.map(cut_off), ..self }
    }

    /// The same if this process is known to hold the lock, and the PID is its own.
    pub(crate) fn or_us(self, is_held_here: bool) -> Self {
        Self { is_us: is_held_here && self.pid == std::process::id(), ..self }
    }

    /// `pid 4321 (backupd) for 3m 12s`, or `this process (pid 4321) for 3m 12s`.
    pub(crate) fn to_a_person(&self) -> impl fmt::Display {
        match self.is_us {
            false => self.to_string(),
            true => format!("this process (pid {}){}", self.pid, ForTime(self.since)),
        }
    }

    /// PID of the holder. 0 if somebody holds the lock but nothing tells who it is, as in another container.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Name of the holder's process, if it is visible from here. A process can choose any name, with control characters
    /// too; [`Display`](fmt::Display) and [`Debug`] escape them.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Name or address of the holder's host, if the lock is on a server that tells it. It may be any text, as the name.
    /// `None` for locks on files.
    pub fn host(&self) -> Option<&str> {
        self.host.as_deref()
    }

    /// When the holder took the lock, if the lock file or the server tells it. It is wall-clock time: show it, but do
    /// not base a decision on it.
    pub fn since(&self) -> Option<SystemTime> {
        self.since
    }
}

/// `pid 4321 (backupd) for 3m 12s`, on a server `pid 4321 (backupd) on db1 for 3m 12s`. A time below one second is left out.
impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pid {
            0 => f.write_str("an unknown process")?,
            pid => write!(f, "pid {pid}")?,
        }
        if let Some(name) = &self.name {
            write!(f, " ({})", Escaped(&**name))?;
        }
        if let Some(host) = &self.host {
            write!(f, " on {}", Escaped(&**host))?;
        }
        ForTime(self.since).fmt(f)
    }
}

/// ` for 3m 12s`, or nothing.
pub(crate) struct ForTime(pub(crate) Option<SystemTime>);

impl fmt::Display for ForTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.and_then(|since| since.elapsed().ok()) {
            Some(held) if held >= Duration::from_secs(1) => write!(f, " for {}", Span(held)),
            _ => Ok(()),
        }
    }
}

/// `, held by …` behind an error or a log message, or nothing.
pub(crate) struct Brief<'a>(pub(crate) Option<&'a Holder>);

impl fmt::Display for Brief<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(holder) => write!(f, ", held by {}", holder.to_a_person()),
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
        let since = held.map(|seconds| SystemTime::now() - Duration::from_secs(seconds));
        Holder::new(4321, Some("backupd".into()), since)
    }

    #[test]
    fn reads_like_a_sentence() {
        assert_eq!(holder(None).to_string(), "pid 4321 (backupd)");
        assert_eq!(holder(Some(0)).to_string(), "pid 4321 (backupd)");
        assert_eq!(holder(Some(192)).to_string(), "pid 4321 (backupd) for 3m 12s");
        assert_eq!(holder(Some(7_260)).to_string(), "pid 4321 (backupd) for 2h 1m");
        assert_eq!(holder(Some(180_000)).to_string(), "pid 4321 (backupd) for 2d 2h");
        let remote = holder(Some(192)).on_host(Some("db1".into()));
        assert_eq!(remote.to_string(), "pid 4321 (backupd) on db1 for 3m 12s");
    }

    #[test]
    fn any_name_is_safe_to_show() {
        let evil = "a\n\u{1b}[2J\u{202e}".to_owned();
        let holder = Holder::new(1, Some(evil.clone()), None).on_host(Some(evil));
        assert_eq!(holder.to_string(), r"pid 1 (a\n\u{1b}[2J\u{202e}) on a\n\u{1b}[2J\u{202e}");
        let long = Holder::new(1, Some("é".repeat(10_000)), None).on_host(Some("é".repeat(10_000)));
        assert!(long.to_string().len() < 1_100);
    }
}
