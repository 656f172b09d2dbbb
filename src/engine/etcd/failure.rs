//! Why a call has failed, and whether its request may be carried out all the same.

use std::fmt;
use std::io;

use crate::words::error::LockError;
use crate::words::target::Target;

/// A status code of gRPC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Code(pub(super) u32);

impl Code {
    const CANCELLED: Self = Self(1);
    const UNKNOWN: Self = Self(2);
    const DEADLINE_EXCEEDED: Self = Self(4);
    const NOT_FOUND: Self = Self(5);
    const FAILED_PRECONDITION: Self = Self(9);
    const UNAVAILABLE: Self = Self(14);
    const UNAUTHENTICATED: Self = Self(16);
}

#[derive(Debug)]
pub(super) struct Failure {
    kind: Kind,
    /// The member that it came from.
    member: Option<String>,
    /// Whether the request may be carried out all the same, now or later.
    is_in_doubt: bool,
}

#[derive(Debug)]
enum Kind {
    Io(io::Error),
    /// What the URL says cannot work, also at a later try.
    Unusable(io::Error),
    Refused(Code, String),
}

impl Failure {
    /// The request has not left this process.
    pub(super) fn not_sent(error: io::Error) -> Self {
        Self { kind: Kind::Io(error), member: None, is_in_doubt: false }
    }

    /// No member can do what the URL says.
    pub(super) fn unusable(error: io::Error) -> Self {
        Self { kind: Kind::Unusable(error), member: None, is_in_doubt: false }
    }

    /// No answer, or none that can be understood.
    pub(super) fn broken(error: io::Error) -> Self {
        Self { kind: Kind::Io(error), member: None, is_in_doubt: true }
    }

    pub(super) fn no_answer() -> Self {
        Self::broken(io::Error::new(io::ErrorKind::TimedOut, "no answer in time"))
    }

    pub(super) fn no_connection() -> Self {
        Self::not_sent(io::Error::new(
            io::ErrorKind::TimedOut,
            "no member of the cluster accepted a connection in time",
        ))
    }

    /// The lock cannot be waited for any more.
    pub(super) fn place_lost() -> Self {
        let lost = "its key in the queue was deleted, or its lease has ended";
        Self::not_sent(io::Error::new(io::ErrorKind::ConnectionAborted, lost))
    }

    /// The server has answered with an error.
    pub(super) fn refused(code: Code, message: String) -> Self {
        let is_in_doubt = is_passing(code) && message != NO_LEADER;
        Self { kind: Kind::Refused(code, message), member: None, is_in_doubt }
    }

    /// The same, with the member that it came from.
    pub(super) fn at(self, member: impl fmt::Display) -> Self {
        Self { member: Some(member.to_string()), ..self }
    }

    /// The same, where an earlier try may be in doubt too.
    pub(super) fn doubted(self, is_in_doubt: bool) -> Self {
        Self { is_in_doubt: self.is_in_doubt || is_in_doubt, ..self }
    }

    pub(super) fn is_in_doubt(&self) -> bool {
        self.is_in_doubt
    }

    /// Whether another server, or the same one a moment later, may answer better.
    pub(super) fn is_passing(&self) -> bool {
        match &self.kind {
            Kind::Io(_) => true,
            Kind::Unusable(_) => false,
            Kind::Refused(code, message) => is_passing(*code) || is_token_old(*code, message),
        }
    }

    /// Whether the server does not know the lease, or has ended it.
    pub(super) fn is_lease_gone(&self) -> bool {
        matches!(self.kind, Kind::Refused(Code::NOT_FOUND, _))
    }

    /// Whether the server knows no users, so that it needs no password.
    pub(super) fn is_without_users(&self) -> bool {
        matches!(&self.kind, Kind::Refused(Code::FAILED_PRECONDITION, message) if message.contains("not enabled"))
    }

    pub(super) fn into_error(self, target: &Target, action: &'static str) -> LockError {
        let url = target.server.as_deref().expect("a lock on a server has its URL");
        let kind = match &self.kind {
            Kind::Io(error) | Kind::Unusable(error) => error.kind(),
            Kind::Refused(..) => io::ErrorKind::Other,
        };
        LockError::engine(url, action, io::Error::new(kind, self.to_string()))
    }
}

/// What a member answers before it has looked at the request.
const NO_LEADER: &str = "etcdserver: no leader";

fn is_passing(code: Code) -> bool {
    matches!(code, Code::CANCELLED | Code::UNKNOWN | Code::DEADLINE_EXCEEDED | Code::UNAVAILABLE)
}

/// Whether the server wants the name and the password again.
fn is_token_old(code: Code, message: &str) -> bool {
    code == Code::UNAUTHENTICATED || message == "etcdserver: revision of auth store is old"
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Kind::Io(error) | Kind::Unusable(error) => error.fmt(f)?,
            Kind::Refused(Code(code), message) if message.is_empty() => write!(f, "gRPC status {code}")?,
            Kind::Refused(_, message) => f.write_str(message)?,
        }
        match &self.member {
            Some(member) => write!(f, " ({member})"),
            None => Ok(()),
        }
    }
}
