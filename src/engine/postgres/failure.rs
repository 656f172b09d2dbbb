//! Why something did not work on a server.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::config::{Host, Settings};
use crate::words::error::LockError;
use crate::words::target::Target;

/// Cheap to clone: many may wait for one answer.
#[derive(Debug, Clone)]
pub(super) enum Failure {
    /// No host could be reached.
    Unreachable(Vec<(Host, Failure)>),
    Io(Arc<io::Error>),
    Postgres(Arc<tokio_postgres::Error>),
    NoAnswer(Duration),
    /// The server cannot have such locks, or something between us and the server breaks them.
    Unsupported(String),
}

impl Failure {
    /// The statement ran in another server session than the one before.
    pub(super) fn another_session() -> Self {
        Self::Unsupported(
            "something in front of the server changes the server session between statements, as PgBouncer does with \
             pool_mode transaction or statement; use pool_mode session, or connect to the server itself"
                .into(),
        )
    }

    pub(super) fn standby() -> Self {
        Self::Unsupported(
            "the server is a hot standby, and locks there exclude nobody on the primary; name the primary, or all hosts"
                .into(),
        )
    }

    pub(super) fn no_such_answer() -> Self {
        io::Error::new(io::ErrorKind::InvalidData, "the server's answer is not that of PostgreSQL").into()
    }

    pub(super) fn sql_state(&self) -> Option<&str> {
        match self {
            Self::Postgres(error) => error.code().map(tokio_postgres::error::SqlState::code),
            _ => None,
        }
    }

    pub(super) fn is_unsupported(&self) -> bool {
        matches!(self, Self::Unsupported(_))
    }

    /// The server ended the statement because somebody asked it to.
    pub(super) fn is_canceled(&self) -> bool {
        self.sql_state() == Some("57014")
    }

    /// The server has refused the statement, and the session goes on.
    pub(super) fn is_of_statement(&self) -> bool {
        self.sql_state().is_some() && !self.is_end_of_session()
    }

    /// The server has not waited any longer for a lock of its own.
    pub(super) fn is_lock_timeout(&self) -> bool {
        self.sql_state() == Some("55P03")
    }

    /// Whether the session has ended, as an old one may.
    pub(super) fn is_end_of_session(&self) -> bool {
        match self {
            Self::Postgres(error) => {
                let is_fatal = error.as_db_error().is_some_and(|error| {
                    matches!(error.parsed_severity(), Some(tokio_postgres::error::Severity::Fatal))
                });
                is_fatal || error.as_db_error().is_none()
            }
            _ => false,
        }
    }

    /// What to do about it, if it has come from a try to connect. The texts of the libraries below do not say it.
    fn advice(&self) -> &'static str {
        const ANOTHER_SERVER: &str = "; is it the port of PostgreSQL?";
        let text = self.to_string();
        let is = |start: &[&str]| start.iter().any(|start| text.starts_with(start));
        match self {
            Self::NoAnswer(_) => ANOTHER_SERVER,
            Self::Postgres(error) if error.as_db_error().is_some() => "",
            Self::Postgres(_)
                if is(&["error communicating", "error parsing", "unexpected message", "connection closed"]) =>
            {
                ANOTHER_SERVER
            }
            Self::Io(_) if text.contains("UnknownIssuer") => "; sslrootcert names the authorities to trust",
            // It is PostgreSQL then, or somebody in between.
            Self::Io(_) if ["certificate", "SCRAM", "signature"].iter().any(|word| text.contains(word)) => "",
            Self::Io(error) => match error.kind() {
                io::ErrorKind::ConnectionRefused => "; does PostgreSQL run there?",
                io::ErrorKind::BrokenPipe
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::InvalidData
                | io::ErrorKind::UnexpectedEof => ANOTHER_SERVER,
                _ => "",
            },
            _ => "",
        }
    }

    pub(super) fn into_error(self, target: &Target, action: &'static str) -> LockError {
        let url = target.url();
        match self {
            Self::Unsupported(reason) => target.unsupported(reason),
            Self::Io(error) => {
                let copy = |error: Arc<io::Error>| io::Error::new(error.kind(), error.to_string());
                url.failed(action, Arc::try_unwrap(error).unwrap_or_else(copy))
            }
            Self::Unreachable(mut tried) if tried.len() == 1 => {
                let (_, failure) = tried.remove(0);
                match (failure.advice(), failure) {
                    ("", failure) => failure.into_error(target, action),
                    (advice, Self::Io(error)) => {
                        url.failed(action, io::Error::new(error.kind(), format!("{error}{advice}")))
                    }
                    (advice, failure) => url.failed(action, format!("{failure}{advice}")),
                }
            }
            other => url.failed(action, other.to_string()),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(tried) => {
                for (at, (host, failure)) in tried.iter().enumerate() {
                    let separator = if at == 0 { "" } else { "; " };
                    write!(f, "{separator}{} port {}: {failure}{}", host.name, host.port, failure.advice())?;
                }
                Ok(())
            }
            Self::Io(error) => error.fmt(f),
            Self::Postgres(error) => match error.as_db_error() {
                Some(error) => {
                    write!(f, "{}: {} (SQLSTATE {})", error.severity(), error.message(), error.code().code())
                }
                None => write_with_causes(f, &**error),
            },
            Self::NoAnswer(limit) => write!(f, "the server has not answered for {limit:?}"),
            Self::Unsupported(reason) => f.write_str(reason),
        }
    }
}

fn write_with_causes(f: &mut fmt::Formatter<'_>, error: &dyn std::error::Error) -> fmt::Result {
    write!(f, "{error}")?;
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.into_iter().try_for_each(|cause| write!(f, ": {cause}"))
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error.into())
    }
}

impl From<tokio_postgres::Error> for Failure {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Postgres(error.into())
    }
}

/// The failure of all hosts. If there is only one host and it is unsuitable, its own failure tells more.
pub(super) fn of_all(settings: &Settings, failures: Vec<Failure>) -> Failure {
    match failures.len() == 1 && failures.iter().all(Failure::is_unsupported) {
        true => failures.into_iter().next().expect("there is one"),
        false => Failure::Unreachable(settings.hosts.iter().cloned().zip(failures).collect()),
    }
}
