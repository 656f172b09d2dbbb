//! The URL of a lock on a server: `SCHEME://user:password@host:port,host:port/path?name=value&…`.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::io;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::error::LockError;
use super::escape::said;
use super::kind::LockKind;
use super::mode::Mode;

/// All characters except the unreserved ones of RFC 3986.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

const ESCAPED_IN_PATH: &AsciiSet = &ESCAPED.remove(b'/');

/// The parameter that opens a shared handle. It has no value.
pub(crate) const SHARED: &str = "shared";

/// Where a lock on a server is, and how to get there. The engine of its kind knows what the parts mean.
///
/// Neither `Debug` nor `Display` shows the password, and two URLs that differ only in the password are equal.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct ServerUrl {
    pub(crate) kind: LockKind,
    pub(crate) user: Option<String>,
    pub(crate) password: Secret,
    /// In the given order. May be empty.
    pub(crate) hosts: Vec<Host>,
    /// Decoded, without the slash in front.
    pub(crate) path: String,
    /// Names and decoded values, in the given order. Only known names, each once.
    pub(crate) parameters: Vec<(String, String)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Host {
    /// Decoded. An IPv6 address is without its brackets, and with its zone as in `fe80::1%eth0`.
    pub(crate) name: String,
    pub(crate) port: Option<u16>,
}

/// A password, if there is one. It plays no part in what a URL names.
#[derive(Clone)]
pub(crate) struct Secret(Option<String>);

impl Secret {
    pub(crate) fn new(password: Option<String>) -> Self {
        Self(password)
    }

    #[allow(dead_code, reason = "for the engines, which are features")]
    pub(crate) fn reveal(&self) -> Option<&str> {
        self.0.as_deref()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl PartialEq for Secret {
    fn eq(&self, _other: &Self) -> bool {
        true
    }
}

impl Eq for Secret {}

impl Hash for Secret {
    fn hash<H: Hasher>(&self, _state: &mut H) {}
}

pub(crate) const SCHEMES: [(&str, LockKind); 3] =
    [("postgres", LockKind::Postgres), ("postgresql", LockKind::Postgres), ("etcd", LockKind::Etcd)];

/// The scheme of a server that is written so, and its kind.
pub(crate) fn scheme(text: &str) -> Option<(&'static str, LockKind)> {
    SCHEMES.into_iter().find(|(scheme, _)| scheme.eq_ignore_ascii_case(text))
}

impl ServerUrl {
    /// The value of a parameter.
    #[allow(dead_code, reason = "for the engines, which are features")]
    pub(crate) fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(other, _)| other == name).map(|(_, value)| &**value)
    }

    /// The text of the URL with the parameter of the mode.
    pub(crate) fn in_mode(&self, mode: Mode) -> impl fmt::Display {
        let separator = if self.parameters.is_empty() { '?' } else { '&' };
        match mode {
            Mode::Exclusive => self.to_string(),
            Mode::Shared => format!("{self}{separator}{SHARED}"),
        }
    }
}

/// The errors of this lock.
impl ServerUrl {
    /// The engine of its kind has found a mistake in it.
    #[allow(dead_code, reason = "for the engines, which are features")]
    pub(crate) fn invalid(&self, reason: impl Into<String>) -> LockError {
        LockError::InvalidUrl { url: self.to_string(), reason: reason.into() }
    }

    /// `action` completes "cannot … URL". The text of the cause may be that of a server. Here it is made safe to show, for
    /// all engines.
    pub(crate) fn failed(
        &self,
        action: &'static str,
        cause: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> LockError {
        let cause = cause.into();
        let text = cause.to_string();
        let said = said(&text);
        let source = match cause.downcast_ref::<io::Error>() {
            _ if said == text => cause,
            Some(error) => io::Error::new(error.kind(), said).into(),
            None => said.into(),
        };
        LockError::Engine { url: self.to_string(), action, source }
    }
}

/// The URL without its password.
impl fmt::Display for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://", self.kind)?;
        if let Some(user) = &self.user {
            write!(f, "{}@", utf8_percent_encode(user, ESCAPED))?;
        }
        for (at, host) in self.hosts.iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            write!(f, "{comma}{host}")?;
        }
        write!(f, "/{}", utf8_percent_encode(&self.path, ESCAPED_IN_PATH))?;
        for (at, (name, value)) in self.parameters.iter().enumerate() {
            let separator = if at == 0 { '?' } else { '&' };
            write!(f, "{separator}{name}={}", utf8_percent_encode(value, ESCAPED))?;
        }
        Ok(())
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name.contains(':') {
            true => write!(f, "[{}]", self.name.replace('%', "%25"))?,
            false => write!(f, "{}", utf8_percent_encode(&self.name, ESCAPED))?,
        }
        match self.port {
            Some(port) => write!(f, ":{port}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_a_server_are_made_safe() {
        let hosts = vec![Host { name: "db".into(), port: None }];
        let (password, path) = (Secret::new(None), "x".into());
        let url = ServerUrl { kind: LockKind::Etcd, user: None, password, hosts, path, parameters: Vec::new() };
        assert_eq!(url.failed("try for", "no\n\u{202e}").to_string(), r"cannot try for etcd://db/x: no\n\u{202e}");
        let error = url.failed("try for", io::Error::new(io::ErrorKind::TimedOut, "no\n"));
        assert_eq!(error.to_string(), r"cannot try for etcd://db/x: no\n");
        assert_eq!(error.io_error().unwrap().kind(), io::ErrorKind::TimedOut);
        let system = url.failed("try for", io::Error::from_raw_os_error(2));
        assert_eq!(system.io_error().unwrap().raw_os_error(), Some(2));
    }
}
