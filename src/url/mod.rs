//! Parses and prints lock URLs.

#[cfg(feature = "serde")]
mod serde;
mod server;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use crate::words::error::LockError;
use crate::words::kind::LockKind;
use crate::words::mode::Mode;
use crate::words::options::Options;
use crate::words::percent;
use crate::words::server_url::{self, SHARED, ServerUrl};
use crate::words::target::{self, Target};

/// The URL of a lock. Its form is `SCHEME:relative`, `SCHEME:/abs`, `SCHEME:///abs` or `SCHEME://localhost/abs`. The
/// path is percent-encoded. The `FileURL` of PEAK has the same forms.
///
/// The schemes are `lockfile` (the platform's default), `nativelockfile` (the kernel's own file lock), `shlockfile`,
/// `flockfile`, `winflockfile` and `nulllockfile`.
/// `nulllockfile:` is a new lock each time it is opened. `nulllockfile:NAME` is one lock for each name in this process.
/// With `?shared` at its end a URL opens the [shared](crate::LockFile::shared) handle.
///
/// The URL of a lock on a server is `SCHEME://user:password@host:port/path?name=value`. Several hosts stand with commas
/// between them. The schemes are `postgres` (also `postgresql`) and `etcd`, and they need the features of the same
/// names. [Beyond one machine](crate::beyond) lists the parameters. No text of a URL shows the password, and two URLs
/// that differ only in their passwords are equal. So the printed text of such a URL opens the same lock only if the
/// password comes from elsewhere, such as the variable `PGPASSWORD`. For a text that is no URL, an error shows only what
/// can be no part of a password.
///
/// In a password these characters are percent-encoded: blanks and `/ ? # @ %`. So are `:` and `@` in the path of a file
/// that has both, because such a text may be the URL of a server with the wrong scheme.
///
/// With the feature `serde`, a URL is a string in a configuration file.
///
/// ```
/// use tokio_lockfile::LockUrl;
///
/// let url: LockUrl = "flockfile://localhost/run/my%20app.lock".parse().unwrap();
/// assert_eq!(url.to_string(), "flockfile:///run/my%20app.lock");
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LockUrl {
    address: Address,
    mode: Mode,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Address {
    File { scheme: Scheme, path: PathBuf },
    Server(Arc<ServerUrl>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Scheme {
    PlatformDefault,
    Native,
    Explicit(LockKind),
}

/// What an error shows in the place of all that may be a part of a password.
const HIDDEN: &str = "***";

const SCHEMES: [(&str, Scheme); 6] = [
    ("lockfile", Scheme::PlatformDefault),
    ("nativelockfile", Scheme::Native),
    ("shlockfile", Scheme::Explicit(LockKind::Shlock)),
    ("flockfile", Scheme::Explicit(LockKind::Flock)),
    ("winflockfile", Scheme::Explicit(LockKind::WinFlock)),
    ("nulllockfile", Scheme::Explicit(LockKind::Null)),
];

impl LockUrl {
    /// The URL of a lock. Its scheme names the kind.
    pub(crate) fn new(target: &Target, mode: Mode) -> Self {
        let address = match &target.address {
            target::Address::Server(server) => Address::Server(Arc::clone(server)),
            target::Address::File(path) | target::Address::Null(path) => {
                Address::File { scheme: Scheme::Explicit(target.kind), path: path.into() }
            }
        };
        Self { address, mode }
    }

    /// The lock that the URL names.
    pub(crate) fn target(&self, options: Options) -> Result<Target, LockError> {
        match &self.address {
            Address::Server(server) => Target::server(server, options),
            Address::File { scheme, path } => match scheme.kind() {
                LockKind::Null => Ok(Target::null(path.as_os_str(), options)),
                kind => Target::file(kind, path, options),
            },
        }
    }

    pub(crate) fn mode(&self) -> Mode {
        self.mode
    }
}

impl Scheme {
    fn kind(self) -> LockKind {
        match self {
            Self::PlatformDefault => LockKind::PLATFORM_DEFAULT,
            Self::Native => LockKind::NATIVE,
            Self::Explicit(kind) => kind,
        }
    }
}

impl FromStr for LockUrl {
    type Err = LockError;

    /// # Errors
    /// [`LockError::InvalidUrl`], which names the mistake. It shows no password that the text may contain.
    fn from_str(url: &str) -> Result<Self, LockError> {
        parse(url).map_err(|reason| LockError::InvalidUrl { url: harmless(url), reason })
    }
}

/// The parts of a text with a mistake that are no part of a password, whatever the author meant.
///
/// Such a text does not tell where its password begins or ends. So of the URL of a server this is only the scheme. It is
/// also the path of a file, if nothing behind it can set off a password from a user or a host. Of another URL it is a scheme
/// of a few small letters in front of a `/`, where nobody writes a password, or one that was meant as ours.
fn harmless(text: &str) -> String {
    let (scheme, rest) = match text.split_once(':') {
        Some((scheme, rest)) => (&text[..=scheme.len()], rest),
        None if text.starts_with('/') => ("", text),
        None => return HIDDEN.into(),
    };
    let is = |known: &str| scheme.strip_suffix(':').is_none_or(|scheme| scheme.eq_ignore_ascii_case(known));
    if !SCHEMES.iter().map(|(name, _)| *name).chain(["file"]).any(is) {
        let name = scheme.trim_end_matches(':');
        let is_word = name.len() <= 12 && name.bytes().all(|byte| byte.is_ascii_lowercase()) && rest.starts_with('/');
        let is_known = is_word || server_url::scheme(name).is_some() || meant(name).is_some();
        let scheme = if is_known { scheme } else { "" };
        return format!("{scheme}{HIDDEN}");
    }
    let (path, query) = rest.split_at(rest.find(['?', '#']).unwrap_or(rest.len()));
    let is_path = path.chars().all(|char| char.is_alphanumeric() || "/._~+,-".contains(char));
    match is_path && !query.contains([':', '@', '%']) {
        true if query.is_empty() => text.into(),
        true => format!("{scheme}{path}{HIDDEN}"),
        false => format!("{scheme}{HIDDEN}"),
    }
}

/// A reason repeats nothing of the text, for the same reason.
fn parse(url: &str) -> Result<LockUrl, String> {
    // A text from a file or from the environment easily has one of these, and would name another lock.
    if url.is_empty() {
        return Err("it is empty".into());
    }
    if url.trim() != url || url.contains(char::is_control) {
        let reason = "it begins or ends with a blank, or has a line feed or another control character; in a path, write a \
                      blank as %20 and a line feed as %0A";
        return Err(reason.into());
    }
    if url.starts_with(['"', '\'']) {
        return Err("it begins with a quotation mark".into());
    }
    let Some((scheme, rest)) = url.split_once(':').filter(|(scheme, _)| !scheme.contains('/')) else {
        return Err("it has no scheme; write lockfile: in front of a path".into());
    };
    if let Some(parsed) = server::parse(scheme, rest) {
        return parsed.map(|(server, mode)| LockUrl { address: Address::Server(server.into()), mode });
    }
    let Some(&(_, scheme)) = SCHEMES.iter().find(|(name, _)| name.eq_ignore_ascii_case(scheme)) else {
        let known: Vec<&str> =
            SCHEMES.iter().map(|&(name, _)| name).chain(server_url::SCHEMES.map(|(name, _)| name)).collect();
        let hint = meant(scheme).map(|meant| format!("; perhaps {meant}: is meant"));
        return Err(format!("its scheme is none of {}{}", known.join(", "), hint.unwrap_or_default()));
    };
    if rest.contains('#') {
        return Err("it has a fragment; write a # in a path as %23".into());
    }
    let (rest, mode) = match rest.split_once('?') {
        None => (rest, Mode::Exclusive),
        Some((rest, SHARED)) => (rest, Mode::Shared),
        Some(_) => return Err("it has a query other than ?shared; write a question mark in a path as %3F".into()),
    };
    let path = match rest.strip_prefix("//") {
        None => rest,
        Some(rest) => {
            let (host, _) = rest.split_once('/').unwrap_or((rest, ""));
            if !(host.is_empty() || host.eq_ignore_ascii_case("localhost")) {
                let reason = "it names another host, but a lock file is on this one; write one slash in front of the path, \
                              or three";
                return Err(reason.into());
            }
            &rest[host.len()..]
        }
    };
    let is_encoded = !path.contains([':', '@']);
    let path = percent::decode_path(path)?;
    // With its password, it would be shown wherever a path is.
    if percent::has_login(path.as_encoded_bytes()) && !is_encoded {
        return Err("its path looks like a user with a password; write : and @ in a path as %3A and %40".into());
    }
    let is_null = scheme == Scheme::Explicit(LockKind::Null);
    if path.is_empty() && !is_null {
        return Err("its path is empty".into());
    }
    Ok(LockUrl { address: Address::File { scheme, path: path.into() }, mode })
}

/// The scheme that somebody means who writes the name of a kind, as in `shlock:`.
fn meant(scheme: &str) -> Option<&'static str> {
    if scheme.eq_ignore_ascii_case("file") {
        return Some("lockfile");
    }
    let is_short_for = |name: &str| {
        ["file", "lockfile"]
            .iter()
            .any(|end| name.strip_suffix(end).is_some_and(|short| scheme.eq_ignore_ascii_case(short)))
    };
    SCHEMES.iter().map(|(name, _)| *name).find(|name| !scheme.is_empty() && is_short_for(name))
}

/// Prints `SCHEME:///abs` or `SCHEME:relative`, percent-encoded, and for a shared handle `?shared` behind it. The URL
/// of a lock on a server is printed without its password. The printed text parses to an equal URL.
impl fmt::Display for LockUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, path) = match &self.address {
            Address::Server(server) => return server.in_mode(self.mode).fmt(f),
            Address::File { scheme, path } => (scheme, path),
        };
        let (scheme, _) = SCHEMES.iter().find(|(_, other)| other == scheme).expect("all schemes have a name");
        f.write_str(&percent::url(scheme, path.as_os_str()))?;
        match self.mode {
            Mode::Exclusive => Ok(()),
            Mode::Shared => write!(f, "?{SHARED}"),
        }
    }
}

#[cfg(test)]
impl LockUrl {
    pub(crate) fn server(&self) -> Option<&ServerUrl> {
        match &self.address {
            Address::File { .. } => None,
            Address::Server(server) => Some(server),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    impl LockUrl {
        fn path(&self) -> &Path {
            match &self.address {
                Address::File { path, .. } => path,
                Address::Server(server) => panic!("{server}"),
            }
        }
    }

    fn error(url: &str) -> (String, String) {
        match url.parse::<LockUrl>() {
            Err(LockError::InvalidUrl { reason, url: shown }) => (shown, reason),
            other => panic!("{url}: {other:?}"),
        }
    }

    fn reason(url: &str) -> String {
        error(url).1
    }

    #[test]
    fn the_four_forms() {
        for (url, path) in [
            ("lockfile:a/b", "a/b"),
            ("lockfile:/a/b", "/a/b"),
            ("lockfile:///a/b", "/a/b"),
            ("LockFile://LOCALHOST/a/b", "/a/b"),
            ("nativelockfile:///a/b", "/a/b"),
            ("lockfile:/a%20%25%23%3F", "/a %#?"),
        ] {
            let parsed: LockUrl = url.parse().unwrap();
            assert_eq!(parsed.path(), Path::new(path), "{url}");
            assert_eq!(parsed.to_string().parse::<LockUrl>().unwrap(), parsed, "{url}");
        }
    }

    #[test]
    fn each_mistake_has_its_own_answer() {
        assert!(reason("").contains("empty"));
        for url in ["lockfile:/x\n", " lockfile:/x", "lockfile:/x ", "lockfile:/x\ty", "null:\n", "etcd://h/x\n"] {
            assert!(reason(url).contains("blank"), "{url:?}");
        }
        assert!(reason("\"lockfile:/x\"").contains("quotation mark"));
        assert!("lockfile:/x%0A%20".parse::<LockUrl>().is_ok());
        assert!(reason("/run/app.lock").contains("no scheme"));
        assert!(reason("/run/a:b.lock").contains("no scheme"));
        assert!(reason("redis://db").contains("scheme is none of lockfile, "));
        for (url, meant) in [
            ("shlock:/x", "shlockfile:"),
            ("FLOCK:/x", "flockfile:"),
            ("lock:/x", "lockfile:"),
            ("null:", "nulllockfile:"),
        ] {
            assert!(reason(url).ends_with(&format!("; perhaps {meant} is meant")), "{}", reason(url));
        }
        assert!(reason("file:/run/app.lock").ends_with("; perhaps lockfile: is meant"));
        assert!(reason("lockfile://example.org/run/x").contains("another host"));
        for url in ["lockfile:/x?y", "lockfile:/x?", "lockfile:/x?Shared", "lockfile:/x?shared=1", "lockfile:?shared?"]
        {
            assert!(reason(url).contains("query"), "{url}");
        }
        assert!(reason("lockfile:/x?shared#y").contains("fragment"));
        assert!(reason("lockfile:?shared").contains("empty"));
        assert!(reason("lockfile:/x#y").contains("fragment"));
        assert!(reason("lockfile:").contains("empty"));
        assert!(reason("lockfile://localhost").contains("empty"));
        assert!(reason("lockfile:/%zz").contains("hexadecimal"));
        assert!(reason("lockfile:/%+1").contains("hexadecimal"));
        assert!(reason("lockfile:/%00").contains("NUL"));
        for url in ["lockfile:/app:pw@db", "lockfile:app%3Apw@db", "lockfile:/app:pw%40db", "nulllockfile:a:b@c"] {
            assert!(reason(url).contains("user with a password"), "{url}");
        }
    }

    #[test]
    fn an_error_shows_what_is_no_part_of_a_password() {
        for (url, shown) in [
            ("/run/app.lock", "/run/app.lock"),
            ("file:///run/app.lock", "file:///run/app.lock"),
            ("LockFile:/run/app.lock?y", "LockFile:/run/app.lock***"),
            ("lockfile:/run/app.lock#y", "lockfile:/run/app.lock***"),
            ("flockfile://example.org/run/\u{fc}.lock", "flockfile://example.org/run/\u{fc}.lock"),
            ("lockfile:", "lockfile:"),
            ("lockfile:/run/user@host.lock?y", "lockfile:***"),
            ("lockfile:/run/x?y:z", "lockfile:***"),
            ("lockfile:/run/100%", "lockfile:***"),
            ("postgresql://db/app?lock", "postgresql:***"),
            ("etcd:db", "etcd:***"),
            ("app.lock", "***"),
            ("redis://db", "redis:***"),
            ("lockfil:/run/app.lock", "lockfil:***"),
            ("Redis-1://db", "***"),
            ("correct-horse-battery://db", "***"),
            ("shlock:/run/app.lock", "shlock:***"),
            ("db:S3cretPw", "***"),
            ("/run/app lock", "***"),
            ("", "***"),
        ] {
            assert_eq!(error(url).0, shown, "{url}");
        }
    }

    #[test]
    fn a_path_with_a_colon_and_an_at_is_printed_so_that_it_can_be_parsed() {
        for (url, printed) in [
            ("flockfile:/run/a:b.lock", "flockfile:///run/a:b.lock"),
            ("flockfile:/run/a@b:c.lock", "flockfile:///run/a@b:c.lock"),
            ("flockfile:///run/a%3Ab%40c.lock", "flockfile:///run/a%3Ab%40c.lock"),
            ("lockfile:///C:/a@b.lock", "lockfile:///C:/a@b.lock"),
        ] {
            let parsed: LockUrl = url.parse().unwrap();
            assert_eq!(parsed.to_string(), printed);
            assert_eq!(printed.parse::<LockUrl>().unwrap(), parsed);
        }
    }

    #[test]
    fn a_shared_handle_has_a_url() {
        for (url, printed) in [
            ("flockfile://localhost/a?shared", "flockfile:///a?shared"),
            ("lockfile:a%3Fshared?shared", "lockfile:a%3Fshared?shared"),
            ("nulllockfile:?shared", "nulllockfile:?shared"),
        ] {
            let parsed: LockUrl = url.parse().unwrap();
            assert_eq!(parsed.mode(), Mode::Shared, "{url}");
            assert_eq!(parsed.to_string(), printed);
            assert_eq!(printed.parse::<LockUrl>().unwrap(), parsed);
        }
        assert_ne!("flockfile:/a".parse::<LockUrl>().unwrap(), "flockfile:/a?shared".parse().unwrap());
    }

    #[test]
    fn no_text_shows_the_password() {
        let mut leaks = Vec::new();
        for url in [
            "postgres://app:S3cretPw@db/app",
            "lockfile://app:S3cretPw@host/x",
            "lockfile://app:S3cretPw/x",
            "host=db password=S3cretPw options=a:b",
            "nothing://app:S3cretPw@db/app",
            "postgres://app:12?S3cretPw%40db/app",
            "postgres://app%3AS3cretPw@db/app?lock=x",
            "postgres://app%3AS3cretPw%40db/app?lock=x",
            "postgres://[app:S3cretPw]/app?lock=x",
            "postgres:app:S3cretPw/app",
            "postgres:/app:S3cretPw/app",
            "jdbc:postgresql://app:S3cretPw/app",
            "lockfile:/x?password=S3cretPw",
            "lockfile:/x?token=S3cretPw",
            "lockfile://app%3AS3cretPw%40host/x",
            "lockfile://app%3AS3cretPw/x",
            "postgres://authenticator:/S3cretPw=@db/app",
            "lockfile:app:S3cretPw@db/app",
            "DATABASE_URL=postgres://app:S3cretPw@db/app",
            "\"postgres://app:S3cretPw@db/app\"",
        ] {
            let parsed = url.parse::<LockUrl>().map(|url| url.to_string());
            let opened = crate::LockFile::open(url);
            let said = opened.as_ref().map_or_else(LockError::to_string, |lock| lock.url().to_string());
            let shown = format!("{parsed:?} {opened:?} {said}");
            if shown.contains("S3cretPw") {
                leaks.push(format!("{url} is shown as {shown}"));
            }
        }
        assert!(leaks.is_empty(), "{leaks:#?}");
        let error = crate::LockFile::new("postgres://app:S3cretPw@db/app").unwrap_err();
        assert!(matches!(&error, LockError::InvalidUrl { url, .. } if url == "postgres:***"), "{error:?}");
    }

    #[cfg(unix)]
    #[test]
    fn bytes_that_are_not_utf8_survive() {
        let url: LockUrl = "shlockfile:/a%FFb".parse().unwrap();
        assert_eq!(url.path().as_os_str().as_encoded_bytes(), b"/a\xffb");
        assert_eq!(url.to_string(), "shlockfile:///a%FFb");
    }
}
