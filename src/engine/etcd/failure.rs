//! Why a call has failed, and whether its request may be carried out all the same.
//!
//! A request that a server answers with an error is in doubt, unless its status certainly comes before etcd changes
//! anything. "gRPC" below is `doc/statuscodes.md` of grpc; the files are those of etcd 3.4 and 3.5.
//!
//! | Status | From whom, and when | In doubt |
//! |---|---|---|
//! | 1 CANCELLED | `v3_server.go`: a client's connection ended, also that of a proxy, while the cluster was at work | yes |
//! | 2 UNKNOWN | `v3rpc/util.go`: all errors without a code of their own, such as a dropped proposal | yes |
//! | 3 INVALID_ARGUMENT | never from the library (gRPC); `v3rpc/key.go`, `v3_server.go`, `apply_auth.go`: checks before the change | no |
//! | 4 DEADLINE_EXCEEDED | gRPC: no answer in time | yes |
//! | 5 NOT_FOUND | never from the library (gRPC); `apply.go`: no such lease, before the change | no |
//! | 6 ALREADY_EXISTS, 10 ABORTED | never from the library (gRPC), and not from etcd, so nobody knows | yes |
//! | 7 PERMISSION_DENIED | not from the library (gRPC); `apply_auth.go`: before the change | no |
//! | 8 RESOURCE_EXHAUSTED | `apply.go`: `quotaApplierV3` makes the change and then says that there is no space; gRPC: an answer is too long for a proxy | yes |
//! | 9 FAILED_PRECONDITION | never from the library (gRPC); `rpctypes/error.go`: not for requests about keys | no |
//! | 11 OUT_OF_RANGE | never from the library (gRPC); `apply.go`: `checkRequestRange`, before the change | no |
//! | 12 UNIMPLEMENTED | gRPC: also from a proxy that has got two answers or none | yes |
//! | 13 INTERNAL | gRPC: a proxy cannot read the answer | yes |
//! | 14 UNAVAILABLE | `v3_server.go`: no answer from the cluster in time, or the member ends | yes |
//! | 14 with "no leader" | `v3rpc/interceptor.go`: before it looks at the request | no |
//! | 15 DATA_LOSS | `corrupt.go`: this member changes nothing, but others may | yes |
//! | 16 UNAUTHENTICATED | gRPC: before the call; `v3_server.go`: before the proposal | no |
//!
//! Those that pass, so that a request is made again, are the ones for which Go's client does it (`isHaltErr` in
//! `clientv3/client.go`), and those that a member gives because something between it and the cluster has failed.

use std::fmt;
use std::io;
use std::sync::Arc;

use super::greeting::NOT_HTTP2;
use crate::words::error::LockError;
use crate::words::server_url::ServerUrl;
use crate::words::target::Target;

/// A status code of gRPC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Code(pub(super) u32);

impl Code {
    const CANCELLED: Self = Self(1);
    const UNKNOWN: Self = Self(2);
    const INVALID_ARGUMENT: Self = Self(3);
    const DEADLINE_EXCEEDED: Self = Self(4);
    const NOT_FOUND: Self = Self(5);
    const PERMISSION_DENIED: Self = Self(7);
    const RESOURCE_EXHAUSTED: Self = Self(8);
    const FAILED_PRECONDITION: Self = Self(9);
    const OUT_OF_RANGE: Self = Self(11);
    const INTERNAL: Self = Self(13);
    const UNAVAILABLE: Self = Self(14);
    const UNAUTHENTICATED: Self = Self(16);
}

#[derive(Debug, Clone)]
pub(super) struct Failure {
    kind: Kind,
    /// The member that it came from.
    member: Option<String>,
    /// Whether the request may be carried out all the same, now or later.
    is_in_doubt: bool,
}

#[derive(Debug, Clone)]
enum Kind {
    Io(Arc<io::Error>),
    /// What the URL says cannot work, also at a later try.
    Unusable(Arc<io::Error>),
    Refused(Code, String),
}

impl Failure {
    /// The request has not left this process.
    pub(super) fn not_sent(error: io::Error) -> Self {
        Self { kind: Kind::Io(error.into()), member: None, is_in_doubt: false }
    }

    /// No member can do what the URL says.
    pub(super) fn unusable(error: io::Error) -> Self {
        Self { kind: Kind::Unusable(error.into()), member: None, is_in_doubt: false }
    }

    /// No answer, or none that can be understood.
    pub(super) fn broken(error: io::Error) -> Self {
        Self { kind: Kind::Io(error.into()), member: None, is_in_doubt: true }
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
        let is_in_doubt = !is_before_any_change(code) && message != NO_LEADER;
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

    /// The same for a request that has not been sent.
    pub(super) fn undoubted(self) -> Self {
        Self { is_in_doubt: false, ..self }
    }

    pub(super) fn is_in_doubt(&self) -> bool {
        self.is_in_doubt
    }

    /// Whether the request has not left this process, or the server says that it has not begun with it.
    pub(super) fn is_not_sent(&self) -> bool {
        matches!(self.kind, Kind::Io(_)) && !self.is_in_doubt
    }

    /// Whether another server, or the same one a moment later, may answer better.
    pub(super) fn is_passing(&self) -> bool {
        match &self.kind {
            Kind::Io(_) => true,
            Kind::Unusable(_) => false,
            Kind::Refused(code, message) => is_passing(*code) || is_token_old(*code, message),
        }
    }

    /// Whether the other end is certainly no member of a cluster.
    pub(super) fn is_foreign(&self) -> bool {
        matches!(&self.kind, Kind::Io(error) if error.to_string() == NOT_HTTP2)
    }

    /// Whether the server will refuse the same request again, as far as anybody knows. A server with too much to do, or
    /// with no space, may answer it later.
    pub(super) fn is_refusal(&self) -> bool {
        matches!(&self.kind, Kind::Refused(code, _) if !is_passing(*code) && *code != Code::RESOURCE_EXHAUSTED)
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
        let url = target.url();
        let kind = match &self.kind {
            Kind::Io(error) | Kind::Unusable(error) => error.kind(),
            Kind::Refused(..) => io::ErrorKind::Other,
        };
        url.failed(action, io::Error::new(kind, format!("{self}{}", self.advice(url))))
    }

    /// What to do if nobody answers as etcd does. The texts of the libraries below do not say it.
    fn advice(&self, url: &ServerUrl) -> &'static str {
        let Kind::Io(error) = &self.kind else { return "" };
        let has_tls = ["cacert", "cert", "key"].iter().any(|name| url.parameter(name).is_some());
        let has_tls = url.parameter("tls").map_or(has_tls, |tls| tls == "on");
        match (error.kind(), error.to_string()) {
            (io::ErrorKind::ConnectionRefused, _) => "; does etcd run there?",
            (_, text) if text.contains("UnknownIssuer") => "; cacert names the authorities to trust",
            (_, text) if text.contains("certificate") => "",
            (
                io::ErrorKind::BrokenPipe
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::InvalidData
                | io::ErrorKind::UnexpectedEof
                | io::ErrorKind::Other,
                _,
            ) => match has_tls {
                true => "; is it the port of etcd? If the cluster has no TLS, write tls=off",
                false => "; is it the port of etcd? If the cluster has TLS, write tls=on",
            },
            _ => "",
        }
    }
}

/// What a member answers before it has looked at the request.
const NO_LEADER: &str = "etcdserver: no leader";

fn is_passing(code: Code) -> bool {
    matches!(code, Code::CANCELLED | Code::UNKNOWN | Code::DEADLINE_EXCEEDED | Code::INTERNAL | Code::UNAVAILABLE)
}

/// Whether this status certainly comes before the cluster changes anything. Its source is in the table above.
fn is_before_any_change(code: Code) -> bool {
    matches!(
        code,
        Code::INVALID_ARGUMENT
            | Code::NOT_FOUND
            | Code::PERMISSION_DENIED
            | Code::FAILED_PRECONDITION
            | Code::OUT_OF_RANGE
            | Code::UNAUTHENTICATED
    )
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_in_doubt_unless_its_status_comes_before_any_change() {
        let in_doubt = |code| Failure::refused(Code(code), String::new()).is_in_doubt();
        assert_eq!((1..=16).filter(|&code| !in_doubt(code)).collect::<Vec<_>>(), [3, 5, 7, 9, 11, 16]);
        assert!(in_doubt(99), "a status of tomorrow");
        assert!(!Failure::refused(Code::UNAVAILABLE, NO_LEADER.into()).is_in_doubt());
    }

    #[test]
    fn a_server_that_may_answer_later_does_not_refuse() {
        let refuses = |code| Failure::refused(Code(code), String::new()).is_refusal();
        assert_eq!((1..=16).filter(|&code| !refuses(code)).collect::<Vec<_>>(), [1, 2, 4, 8, 13, 14]);
        assert!(!Failure::no_answer().is_refusal());
    }
}
