//! The kinds of lock.

/// How a lock excludes others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LockKind {
    /// A PID file made with link(2), as shlock(1), HoneyDanBer UUCP and NNTP servers use it. On Unix.
    Shlock,
    /// flock(2) on a file that stays. On Unix.
    Flock,
    /// `LockFileEx` on a file that stays. On Windows.
    WinFlock,
    /// Excludes only tasks of this process. On every platform.
    Null,
    /// An advisory lock of a session in a PostgreSQL database. Needs the feature `postgres`.
    Postgres,
    /// A key under a lease in an etcd cluster. Needs the feature `etcd`.
    Etcd,
}

impl LockKind {
    const ALL: [Self; 6] = [Self::Shlock, Self::Flock, Self::WinFlock, Self::Null, Self::Postgres, Self::Etcd];

    /// What [`LockFile::new`](crate::LockFile::new) and the URL scheme `lockfile:` mean here.
    pub(crate) const PLATFORM_DEFAULT: Self = if cfg!(windows) { Self::WinFlock } else { Self::Shlock };

    /// What [`LockFile::native`](crate::LockFile::native) and the URL scheme `nativelockfile:` mean here.
    pub(crate) const NATIVE: Self = if cfg!(windows) { Self::WinFlock } else { Self::Flock };

    /// Whether other processes take part in the lock.
    pub(crate) const fn is_between_processes(self) -> bool {
        !matches!(self, Self::Null)
    }

    /// Whether readers can hold the lock together.
    pub(crate) const fn can_be_shared(self) -> bool {
        !matches!(self, Self::Shlock)
    }

    /// As in "an etcd".
    pub(crate) fn with_article(self) -> String {
        let article = if self == Self::Etcd { "an" } else { "a" };
        format!("{article} {self}")
    }

    pub(crate) const fn is_supported(self) -> bool {
        match self {
            Self::Shlock | Self::Flock => cfg!(unix),
            Self::WinFlock => cfg!(windows),
            Self::Null => true,
            Self::Postgres | Self::Etcd => self.missing_feature().is_none(),
        }
    }

    /// The feature of this crate that would build this kind in.
    pub(crate) const fn missing_feature(self) -> Option<&'static str> {
        match self {
            Self::Postgres if !cfg!(feature = "postgres") => Some("postgres"),
            Self::Etcd if !cfg!(feature = "etcd") => Some("etcd"),
            _ => None,
        }
    }
}

impl std::fmt::Display for LockKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Shlock => "shlock",
            Self::Flock => "flock",
            Self::WinFlock => "winflock",
            Self::Null => "null",
            Self::Postgres => "postgres",
            Self::Etcd => "etcd",
        })
    }
}

/// From the name that [`Display`](std::fmt::Display) shows. `"shlock".parse()` is [`Shlock`](LockKind::Shlock).
impl std::str::FromStr for LockKind {
    type Err = UnknownLockKind;

    fn from_str(name: &str) -> Result<Self, UnknownLockKind> {
        Self::ALL.into_iter().find(|kind| kind.to_string() == name).ok_or_else(|| UnknownLockKind(name.to_owned()))
    }
}

/// The text is not the name of a [`LockKind`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a kind of lock; the kinds are shlock, flock, winflock, null, postgres and etcd")]
pub struct UnknownLockKind(String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_parsed_from_its_name() {
        for kind in LockKind::ALL {
            assert_eq!(kind.to_string().parse(), Ok(kind));
        }
        let error = "Flock".parse::<LockKind>().unwrap_err();
        assert!(error.to_string().contains("\"Flock\""), "{error}");
    }
}
