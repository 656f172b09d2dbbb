//! What the URL of a lock and the environment say. The variables are those of libpq.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::environment::{self, Environment};
use super::key;
use super::login::{ChannelBinding, Methods};
use super::tls::{Root, Tls, TlsMode};
use crate::engine::server::{reply, span};
use crate::sys::offer::OfferTimeout;
use crate::words::error::LockError;
use crate::words::server_url::ServerUrl;
use crate::words::target::Target;

const TTL: Duration = Duration::from_secs(10);
const SHORTEST_TTL: Duration = Duration::from_secs(1);
/// The keepalive of Linux takes at most 32,767 s, and no machine on the way keeps a silent connection for hours.
const LONGEST_TTL: Duration = Duration::from_secs(10 * 60);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const PORT: u16 = 5432;

/// How to connect to a server, and how sessions there behave. Locks with equal settings use the same warm sessions. (A
/// warm session is open, but holds no lock.)
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Settings {
    pub(super) hosts: Vec<Host>,
    pub(super) user: String,
    /// `None` if the password file is to be asked.
    pub(super) password: Option<String>,
    pub(super) database: String,
    pub(super) tls: Tls,
    pub(super) channel_binding: ChannelBinding,
    /// `None` for all methods.
    pub(super) require_auth: Option<Methods>,
    /// The program, as the server shows it to others; `None` for its own name.
    pub(super) application_name: Option<String>,
    pub(super) ttl: Duration,
    pub(super) connect_timeout: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Host {
    /// A name, an address, or the directory of a Unix socket.
    pub(super) name: String,
    pub(super) port: u16,
}

impl Host {
    /// The directory of a Unix socket begins with a slash, as in libpq.
    pub(super) fn is_directory(&self) -> bool {
        self.name.starts_with('/')
    }
}

/// Which lock in the database, and whether it has fencing tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LockNumber {
    pub(super) key: i64,
    pub(super) has_token: bool,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { hosts, user, database, ttl, .. } = self;
        write!(f, "{user}@{hosts:?}/{database}, ttl {ttl:?}")
    }
}

#[cfg(any(test, tokio_lockfile_fuzz))]
impl Settings {
    /// Those of `postgres://app:pw@db/app?lock=x` alone.
    pub(super) fn of_example() -> Self {
        use crate::words::server_url::{Host, Secret};
        let url = ServerUrl {
            kind: crate::words::kind::LockKind::Postgres,
            user: Some("app".into()),
            password: Secret::new(Some("pw".into())),
            hosts: vec![Host { name: "db".into(), port: None }],
            path: "app".into(),
            parameters: vec![("lock".into(), "x".into())],
        };
        read(&url, &|_| None).expect("it has no mistakes").0
    }
}

/// A parameter of the URL, or else a variable.
struct Given {
    /// What a message calls it.
    name: String,
    value: String,
}

impl Given {
    fn read(url: &ServerUrl, environment: Environment<'_>, parameter: &str, variable: &str) -> Option<Self> {
        match url.parameter(parameter) {
            Some(value) => Some(Self { name: format!("its {parameter}"), value: value.to_owned() }),
            None => environment(variable).map(|value| Self { name: variable.to_owned(), value }),
        }
    }

    /// One of the values of libpq.
    fn parse<T>(&self, parse: impl Fn(&str) -> Option<T>, values: &str) -> Result<T, String> {
        parse(&self.value).ok_or_else(|| format!("{} {:?} is none of {values}", self.name, self.value))
    }
}

/// Where a lock is, and which one it is.
#[derive(Debug)]
pub(super) struct Lock {
    pub(super) target: Arc<Target>,
    pub(super) settings: Settings,
    pub(super) number: LockNumber,
    pub(super) offer_timeout: OfferTimeout,
}

impl Lock {
    /// Reads the parts of the URL. What the URL leaves out comes from `environment`.
    pub(super) fn read(target: &Arc<Target>, environment: Environment<'_>) -> Result<Self, LockError> {
        let url = target.url();
        let parts = read(url, environment).map_err(|reason| url.invalid(reason));
        parts.map(|(settings, number)| Self {
            target: Arc::clone(target),
            settings,
            number,
            offer_timeout: reply::offer_timeout(),
        })
    }
}

fn read(url: &ServerUrl, environment: Environment<'_>) -> Result<(Settings, LockNumber), String> {
    let user = url.user.clone().or_else(|| environment("PGUSER")).map_or_else(system_user, Ok)?;
    let database = Some(url.path.clone()).filter(|path| !path.is_empty());
    let database = database.or_else(|| environment("PGDATABASE")).unwrap_or_else(|| user.clone());
    let ttl = url.parameter("ttl").map_or(Ok(TTL), |text| span::parse("ttl", text))?;
    if !(SHORTEST_TTL..=LONGEST_TTL).contains(&ttl) {
        return Err(format!("its ttl {ttl:?} is not from 1s to 10m"));
    }
    let given = |parameter, variable| Given::read(url, environment, parameter, variable);
    let hosts = hosts(url, environment)?;
    environment::check(environment, hosts.iter().any(Host::is_directory))?;
    if let Some(attributes) = given("target_session_attrs", "PGTARGETSESSIONATTRS") {
        // A lock is always in a session of a primary. The others ask for a standby.
        let is_primary = |value: &str| ["any", "primary", "read-write"].contains(&value).then_some(());
        attributes.parse(is_primary, "any, primary, read-write: a lock is always on a primary")?;
    }
    let tls = tls(url, environment)?;
    let settings = Settings {
        hosts,
        user,
        password: url.password.reveal().map(str::to_owned).or_else(|| environment("PGPASSWORD")),
        database,
        channel_binding: channel_binding(given("channel_binding", "PGCHANNELBINDING"), &tls)?,
        tls,
        require_auth: given("require_auth", "PGREQUIREAUTH").map(|given| methods(&given)).transpose()?,
        application_name: given("application_name", "PGAPPNAME").map(|given| given.value),
        ttl,
        connect_timeout: connect_timeout(url, environment)?,
    };
    Ok((settings, lock_number(url)?))
}

fn system_user() -> Result<String, String> {
    whoami::username()
        .map_err(|error| format!("it names no user, PGUSER is not set, and the system does not tell the user: {error}"))
}

fn lock_number(url: &ServerUrl) -> Result<LockNumber, String> {
    let key = match (url.parameter("lock"), url.parameter("key")) {
        (Some(""), None) => return Err("the name of its lock is empty".into()),
        (Some(name), None) => key::of_name(name),
        (None, Some(key)) => key.parse().map_err(|_| format!("its key {key:?} is not a 64-bit integer"))?,
        (None, None) => return Err("it names no lock; add lock=NAME or key=NUMBER".into()),
        (Some(_), Some(_)) => return Err("it has a lock and a key; give only one of them".into()),
    };
    let has_token = match url.parameter("fence") {
        None | Some("on") => true,
        Some("off") => false,
        Some(other) => return Err(format!("its fence {other:?} is neither on nor off")),
    };
    Ok(LockNumber { key, has_token })
}

fn hosts(url: &ServerUrl, environment: Environment<'_>) -> Result<Vec<Host>, String> {
    let ports = environment("PGPORT").unwrap_or_default();
    let ports: Vec<&str> = ports.split(',').filter(|port| !port.is_empty()).collect();
    let default = |at: usize| match ports.get(at).or(ports.first().filter(|_| ports.len() == 1)) {
        None => Ok(PORT),
        Some(port) => port.parse().map_err(|_| format!("PGPORT {port:?} is not a port")),
    };
    let listed: Vec<(String, Option<u16>)> = match url.hosts.is_empty() {
        false => url.hosts.iter().map(|host| (host.name.clone(), host.port)).collect(),
        true => {
            let names = environment("PGHOST").unwrap_or_else(|| "localhost".into());
            names.split(',').map(|name| (name.to_owned(), None)).collect()
        }
    };
    let host = |(at, (name, port)): (usize, (String, Option<u16>))| {
        Ok(Host { name, port: port.map_or_else(|| default(at), Ok)? })
    };
    listed.into_iter().enumerate().map(host).collect()
}

fn tls(url: &ServerUrl, environment: Environment<'_>) -> Result<Tls, String> {
    let given = |parameter, variable| Given::read(url, environment, parameter, variable);
    let root = given("sslrootcert", "PGSSLROOTCERT").map(|given| given.value).filter(|file| !file.is_empty());
    let mode = given("sslmode", "PGSSLMODE").map(|given| TlsMode::parse(&given.name, &given.value)).transpose()?;
    // The older variable, which libpq still obeys.
    let is_required = || environment("PGREQUIRESSL").filter(|value| value.starts_with('1'));
    let mode = mode.or_else(|| is_required().map(|_| TlsMode::Require));
    Tls::new(mode, root.map(Root::parse), environment::file_of_user(environment, "root.crt", ".postgresql/root.crt"))
}

fn channel_binding(given: Option<Given>, tls: &Tls) -> Result<ChannelBinding, String> {
    let Some(given) = given else { return Ok(ChannelBinding::Prefer) };
    match given.parse(ChannelBinding::parse, "disable, prefer, require")? {
        ChannelBinding::Require if !cfg!(feature = "postgres-tls") => {
            Err(format!("{} is require, which needs the feature \"postgres-tls\" of tokio-lockfile", given.name))
        }
        ChannelBinding::Require if !tls.may_be_used() => {
            Err(format!("{} is require, which needs TLS, but sslmode is disable", given.name))
        }
        binding => Ok(binding),
    }
}

fn methods(given: &Given) -> Result<Methods, String> {
    Methods::parse(&given.value).map_err(|reason| format!("{} is not valid: {reason}", given.name))
}

fn connect_timeout(url: &ServerUrl, environment: Environment<'_>) -> Result<Duration, String> {
    let timeout = match (url.parameter("connect_timeout"), environment("PGCONNECT_TIMEOUT")) {
        (Some(text), _) => span::parse("connect_timeout", text)?,
        // With 0 or less, libpq waits for ever. This library does not: it uses the default.
        (None, Some(text)) => {
            let seconds: i32 =
                text.trim().parse().map_err(|_| format!("PGCONNECT_TIMEOUT {text:?} is not a number"))?;
            u64::try_from(seconds).ok().filter(|&seconds| seconds > 0).map_or(CONNECT_TIMEOUT, Duration::from_secs)
        }
        (None, None) => CONNECT_TIMEOUT,
    };
    match timeout < SHORTEST_TTL {
        true => Err(format!("its connect_timeout {timeout:?} is less than {SHORTEST_TTL:?}")),
        false => Ok(timeout),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::LockUrl;

    fn read_with(url: &str, environment: Environment<'_>) -> Result<(Settings, LockNumber), String> {
        let url: LockUrl = url.parse().unwrap();
        read(url.server().unwrap(), environment)
    }

    fn settings(url: &str, variables: &[(&str, &str)]) -> Settings {
        let environment = |name: &str| variables.iter().find(|(other, _)| *other == name).map(|(_, v)| (*v).to_owned());
        read_with(url, &environment).unwrap().0
    }

    fn reason(parameters: &str) -> String {
        read_with(&format!("postgres://app@db/app?{parameters}"), &|_| None).unwrap_err()
    }

    fn reason_with(url: &str, variable: &str, value: &str) -> String {
        read_with(url, &|name| (name == variable).then(|| value.to_owned())).unwrap_err()
    }

    #[test]
    fn the_environment_has_what_the_url_leaves_out() {
        let variables = [
            ("PGHOST", "a,/run/pg"),
            ("PGPORT", "6000,6001"),
            ("PGUSER", "app"),
            ("PGPASSWORD", "S3cretPw"),
            ("PGDATABASE", "base"),
            ("PGSSLMODE", "disable"),
            ("PGCONNECT_TIMEOUT", "3"),
        ];
        let from_environment = settings("postgres://?lock=x", &variables);
        let host = |name: &str, port| Host { name: name.into(), port };
        assert_eq!(from_environment.hosts, [host("a", 6000), host("/run/pg", 6001)]);
        assert_eq!((&*from_environment.user, &*from_environment.database), ("app", "base"));
        assert_eq!(from_environment.password.as_deref(), Some("S3cretPw"));
        assert_eq!(from_environment.tls.mode, TlsMode::Disable);
        assert_eq!(from_environment.connect_timeout, Duration::from_secs(3));
        assert!(!format!("{from_environment:?}").contains("S3cret"));

        let url = "postgres://me:pw@db,db2:7000/own?lock=x&sslmode=disable&connect_timeout=2s&ttl=1500ms";
        let from_url = settings(url, &[("PGPORT", "6000"), ("PGPASSWORD", "other"), ("PGCONNECT_TIMEOUT", "0")]);
        assert_eq!(from_url.hosts, [host("db", 6000), host("db2", 7000)]);
        assert_eq!(from_url.password.as_deref(), Some("pw"));
        assert_eq!((from_url.ttl.as_millis(), from_url.connect_timeout.as_secs()), (1500, 2));
        let libpq_waits_for_ever = settings("postgres://me@db/x?lock=x", &[("PGCONNECT_TIMEOUT", "0")]);
        assert_eq!(libpq_waits_for_ever.connect_timeout, CONNECT_TIMEOUT);
        assert_eq!(settings("postgres://me@/?lock=x", &[]).database, "me");
    }

    #[test]
    fn a_lock_is_a_name_or_a_number() {
        let number = |parameters: &str| read_with(&format!("postgres://app@db/app?{parameters}"), &|_| None).unwrap().1;
        assert_eq!(number("key=-7"), LockNumber { key: -7, has_token: true });
        assert_eq!(number("lock=nightly&fence=off"), LockNumber { key: key::of_name("nightly"), has_token: false });
    }

    #[test]
    fn each_mistake_has_its_own_answer() {
        assert!(reason("ttl=3s").contains("names no lock"));
        assert!(reason("lock=").contains("empty"));
        assert!(reason("lock=x&key=1").contains("a lock and a key"));
        assert!(reason("key=99999999999999999999").contains("64-bit"));
        assert!(reason("lock=x&ttl=999ms").contains("1s to 10m"));
        assert!(reason("lock=x&ttl=601s").contains("1s to 10m"));
        assert!(reason("lock=x&ttl=soon").contains("10s"));
        assert!(reason("lock=x&ttl=18446744073709551615h").contains("not a time"));
        assert!(reason("lock=x&connect_timeout=0").contains("less than"));
        assert!(reason("lock=x&fence=no").contains("neither"));
        assert!(reason("lock=x&sslmode=strict").contains("verify-full"));
        assert!(reason("lock=x&sslmode=allow").contains("write prefer"));
        assert!(reason("lock=x&sslmode=require&sslrootcert=system").contains("verify-full"));
        assert!(reason("lock=x&channel_binding=on").contains("disable, prefer, require"));
        assert!(reason("lock=x&require_auth=scram").contains("scram-sha-256"));
        assert!(reason("lock=x&require_auth=").contains("require_auth is not valid"));
        assert!(reason("lock=x&target_session_attrs=standby").contains("on a primary"));
    }

    /// Each of them would be obeyed by libpq, or is a mistake.
    #[test]
    fn what_the_environment_demands_is_met_or_an_error_that_names_it() {
        for (variable, value) in [
            ("PGSSLMODE", "allow"),
            ("PGSSLMODE", "strict"),
            ("PGCHANNELBINDING", "on"),
            ("PGREQUIREAUTH", "scram"),
            ("PGREQUIREAUTH", "md5,!none"),
            ("PGTARGETSESSIONATTRS", "standby"),
            ("PGGSSENCMODE", "require"),
            ("PGGSSENCMODE", "on"),
            ("PGHOSTADDR", "10.0.0.1"),
            ("PGMINPROTOCOLVERSION", "3.2"),
            ("PGSERVICE", "app"),
            ("PGSSLCERTMODE", "require"),
            ("PGSSLCRL", "/crl"),
            ("PGSSLCRLDIR", "/crls"),
            ("PGSSLMINPROTOCOLVERSION", "TLSv1.3"),
            ("PGSSLNEGOTIATION", "direct"),
        ] {
            let reason = reason_with("postgres://app@db/app?lock=x", variable, value);
            assert!(reason.contains(variable), "{variable}={value}: {reason}");
        }
        let sockets = "postgres://app@%2Frun%2Fpostgresql/app?lock=x";
        assert!(reason_with(sockets, "PGREQUIREPEER", "postgres").contains("PGREQUIREPEER"));
        let bound = "postgres://app@db/app?lock=x&sslmode=disable";
        assert!(reason_with(bound, "PGCHANNELBINDING", "require").contains("PGCHANNELBINDING is require"));

        let harmless = [
            ("PGGSSENCMODE", "prefer"),
            ("PGMINPROTOCOLVERSION", "3.0"),
            ("PGREQUIREPEER", "postgres"),
            ("PGSSLCERTMODE", "allow"),
            ("PGSSLMINPROTOCOLVERSION", "TLSv1.2"),
            ("PGSSLNEGOTIATION", "postgres"),
            ("PGTARGETSESSIONATTRS", "read-write"),
        ];
        settings("postgres://app@db/app?lock=x", &harmless);
        // The URL has the last word.
        let variables =
            [("PGTARGETSESSIONATTRS", "standby"), ("PGREQUIREAUTH", "md5"), ("PGCHANNELBINDING", "require")];
        let url = "postgres://app@db/app?lock=x&target_session_attrs=any&require_auth=!none&channel_binding=disable";
        let settings = settings(url, &variables);
        assert_eq!(settings.require_auth, Some(Methods::parse("!none").unwrap()));
        assert_eq!(settings.channel_binding, ChannelBinding::Disable);
    }

    #[cfg(feature = "postgres-tls")]
    #[test]
    fn what_the_environment_demands_of_tls_and_of_the_login() {
        let variables = [
            ("PGREQUIRESSL", "1"),
            ("PGCHANNELBINDING", "require"),
            ("PGREQUIREAUTH", "scram-sha-256"),
            ("HOME", "/h"),
        ];
        let from_environment = settings("postgres://app@db/app?lock=x&sslrootcert=", &variables);
        assert_eq!(from_environment.tls.mode, TlsMode::Require);
        assert_eq!(from_environment.channel_binding, ChannelBinding::Require);
        assert_eq!(from_environment.require_auth, Some(Methods::parse("scram-sha-256").unwrap()));
        // An empty name is none.
        assert_eq!(from_environment.tls.root, None);
        #[cfg(unix)]
        assert_eq!(from_environment.tls.default_root, Some("/h/.postgresql/root.crt".into()));
        let weaker = settings("postgres://app@db/app?lock=x&sslmode=prefer", &variables[..1]);
        assert_eq!(weaker.tls.mode, TlsMode::Prefer);
    }
}
