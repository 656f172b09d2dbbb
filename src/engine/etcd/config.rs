//! What the URL of a lock says: which cluster, which name, and how to talk to the servers.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::engine::server::span;
use crate::sys::environment;
use crate::words::error::LockError;
use crate::words::server_url::{Host, ServerUrl};

const DEFAULT_PORT: u16 = 2379;
const DEFAULT_TTL: Duration = Duration::from_secs(10);
const LONGEST_TTL: u64 = 24 * 60 * 60;

/// As long as etcdctl(1) waits for an answer.
const DEFAULT_LIMIT: Duration = Duration::from_secs(5);

/// The password of a URL that has none, as etcdctl(1) takes it.
const PASSWORD_VARIABLE: &str = "ETCDCTL_PASSWORD";

/// A cluster, and how this process talks to it. Locks with the same configuration have one lease.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Config {
    /// Not empty. Sorted, so that the order in the URL does not matter.
    pub(super) endpoints: Vec<Endpoint>,
    pub(super) credentials: Option<Credentials>,
    pub(super) tls: Option<Tls>,
    /// In whole seconds.
    pub(super) ttl: Duration,
    /// How long an operation may wait for an answer, from all members together.
    pub(super) limit: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Endpoint {
    pub(super) host: String,
    pub(super) port: u16,
}

#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Credentials {
    pub(super) user: String,
    pub(super) password: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Tls {
    /// The certificates to trust; `None` for those of the platform.
    pub(super) roots: Option<PathBuf>,
    /// Who this process is, for a server that asks.
    pub(super) identity: Option<ClientCertificate>,
}

/// A certificate with those that vouch for it, and its private key, in PEM files.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct ClientCertificate {
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
}

/// Without the password.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("user", &self.user).finish_non_exhaustive()
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

impl Config {
    pub(super) fn new(url: &ServerUrl) -> Result<Self, LockError> {
        Self::read(url).map_err(|reason| url.invalid(reason))
    }

    fn read(url: &ServerUrl) -> Result<Self, String> {
        if url.path.is_empty() {
            return Err("it names no lock; write the name behind the hosts, as in etcd://HOST/NAME".into());
        }
        let mut endpoints: Vec<Endpoint> = url.hosts.iter().map(Endpoint::of).collect();
        endpoints.sort();
        endpoints.dedup();
        if endpoints.is_empty() {
            return Err("it names no host".into());
        }
        let limit = span(url, "connect_timeout")?.unwrap_or(DEFAULT_LIMIT);
        if limit.is_zero() {
            return Err("its connect_timeout is not above 0".into());
        }
        Ok(Self { endpoints, credentials: credentials(url)?, tls: tls(url)?, ttl: ttl(url)?, limit })
    }

    /// What all names of a lock in this cluster have in common.
    pub(super) fn identity(&self, name: &str) -> String {
        let endpoints: Vec<String> = self.endpoints.iter().map(Endpoint::to_string).collect();
        format!("etcd://{}/{name}", endpoints.join(","))
    }
}

impl Endpoint {
    fn of(host: &Host) -> Self {
        Self { host: host.name.to_ascii_lowercase(), port: host.port.unwrap_or(DEFAULT_PORT) }
    }
}

fn span(url: &ServerUrl, name: &str) -> Result<Option<Duration>, String> {
    url.parameter(name).map(|text| span::parse(name, text)).transpose()
}

fn credentials(url: &ServerUrl) -> Result<Option<Credentials>, String> {
    let Some(user) = url.user.clone() else {
        return match url.password.reveal() {
            Some(_) => Err("it has a password but no user".into()),
            None => Ok(None),
        };
    };
    let password = url.password.reveal().map(str::to_owned).or_else(|| environment::variable(PASSWORD_VARIABLE));
    match password {
        Some(password) => Ok(Some(Credentials { user, password })),
        None => Err(format!("it has a user but no password; write USER:PASSWORD@ or set {PASSWORD_VARIABLE}")),
    }
}

fn tls(url: &ServerUrl) -> Result<Option<Tls>, String> {
    let file = |name| url.parameter(name).map(PathBuf::from);
    let roots = file("cacert");
    let identity = match (file("cert"), file("key")) {
        (Some(certificate), Some(key)) => Some(ClientCertificate { certificate, key }),
        (None, None) => None,
        _ => return Err("it has only one of the parameters cert and key; they go together".into()),
    };
    let is_meant = roots.is_some() || identity.is_some();
    match url.parameter("tls") {
        Some("on") => Ok(Some(Tls { roots, identity })),
        None if is_meant => Ok(Some(Tls { roots, identity })),
        Some("off") if is_meant => Err("it names certificates, but tls is off".into()),
        None | Some("off") => Ok(None),
        Some(other) => Err(format!("tls is {other:?}; it can be on or off")),
    }
}

fn ttl(url: &ServerUrl) -> Result<Duration, String> {
    let ttl = span(url, "ttl")?.unwrap_or(DEFAULT_TTL);
    match ttl.as_secs() {
        // The leases of etcd are in whole seconds.
        _ if ttl.subsec_nanos() != 0 => Err("its ttl is not in whole seconds".into()),
        1..=LONGEST_TTL => Ok(ttl),
        _ => Err("its ttl is not from 1s to 24h".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::LockUrl;
    use crate::words::options::Options;

    fn read(url: &str) -> Result<Config, LockError> {
        let url: LockUrl = url.parse().unwrap();
        Config::new(url.target(Options::default())?.url())
    }

    fn reason(url: &str) -> String {
        match read(url) {
            Err(LockError::InvalidUrl { reason, url: named }) => {
                assert!(!named.contains("S3cretPw") && !reason.contains("S3cretPw"), "{named}: {reason}");
                reason
            }
            other => panic!("{url}: {other:?}"),
        }
    }

    #[test]
    fn what_a_url_leaves_open() {
        let config = read("etcd://h2,H1:99,h2:2379,[::1]/x").unwrap();
        assert_eq!(config.identity("a/b"), "etcd://[::1]:2379,h1:99,h2:2379/a/b");
        assert_eq!((config.ttl, config.limit), (DEFAULT_TTL, DEFAULT_LIMIT));
        assert_eq!((config.tls, config.credentials), (None, None));
    }

    #[test]
    fn what_a_url_may_say() {
        let config = read("etcd://u:S3cretPw@h/x?ttl=3s&connect_timeout=500ms&cacert=%2Fca.pem").unwrap();
        assert_eq!((config.ttl, config.limit), (Duration::from_secs(3), Duration::from_millis(500)));
        assert_eq!(config.tls.clone().unwrap().roots.unwrap(), PathBuf::from("/ca.pem"));
        assert_eq!(config.credentials.as_ref().unwrap().password, "S3cretPw");
        assert!(!format!("{config:?}").contains("S3cretPw"));
        assert_eq!(read("etcd://h/x?tls=on").unwrap().tls, Some(Tls { roots: None, identity: None }));
        assert!(read("etcd://h/x?cert=c&key=k").unwrap().tls.unwrap().identity.is_some());
        assert_ne!(config, read("etcd://u:other@h/x?ttl=3s&connect_timeout=500ms&cacert=%2Fca.pem").unwrap());
    }

    #[test]
    fn each_mistake_has_its_own_answer() {
        assert!(reason("etcd://h").contains("no lock"));
        assert!(reason("etcd:///x").contains("no host"));
        assert!(reason("etcd://:S3cretPw@h/x").contains("no user"));
        assert!(reason("etcd://h/x?ttl=0").contains("1s to 24h"));
        assert!(reason("etcd://h/x?ttl=1500ms").contains("whole seconds"));
        assert!(reason("etcd://h/x?ttl=soon").contains("ttl"));
        assert!(reason("etcd://h/x?connect_timeout=0s").contains("above 0"));
        assert!(reason("etcd://h/x?tls=yes").contains("on or off"));
        assert!(reason("etcd://h/x?tls=off&cacert=y").contains("tls is off"));
        assert!(reason("etcd://h/x?cert=y").contains("together"));
    }
}
