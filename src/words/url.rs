//! Parses and prints lock URLs.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, percent_encode};

use super::error::LockError;
use super::kind::LockKind;
use super::mode::Mode;
use super::options::Options;
use super::percent;
use super::redact::{quote, redact};
use super::server_url::{self, ServerUrl};
use super::target::Target;

/// The characters of a path that are percent-encoded. These are all characters except the unreserved characters of RFC
/// 3986, the separator, and a few that need no encoding in a path.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b'/')
    .remove(b':')
    .remove(b'+')
    .remove(b',')
    .remove(b'=')
    .remove(b'@');

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
/// password comes from elsewhere, such as the variable `PGPASSWORD`.
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

/// The query of a URL that opens a shared handle.
const SHARED: &str = "shared";

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
        let address = match &target.server {
            Some(server) => Address::Server(Arc::clone(server)),
            None => Address::File { scheme: Scheme::Explicit(target.kind), path: target.path.to_path_buf() },
        };
        Self { address, mode }
    }

    /// The lock that the URL names.
    pub(crate) fn target(&self, options: Options) -> Result<Target, LockError> {
        match &self.address {
            Address::Server(server) => Target::server(server, options),
            Address::File { scheme, path } => match scheme.kind() {
                LockKind::Null => Ok(Target::null(path, options)),
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
        let shown = redact(url);
        parse(url, &shown).map_err(|reason| LockError::InvalidUrl { url: shown, reason })
    }
}

/// `shown`: what a message may show of the URL.
fn parse(url: &str, shown: &str) -> Result<LockUrl, String> {
    // Anything else in front of a colon may be a password.
    let is_scheme = |scheme: &str| scheme.chars().all(|char| char.is_ascii_alphanumeric() || "+-.".contains(char));
    let Some((scheme, rest)) = url.split_once(':').filter(|(scheme, _)| is_scheme(scheme)) else {
        return Err("it has no scheme, such as lockfile:".into());
    };
    if let Some(parsed) = server_url::parse(scheme, rest, shown) {
        return parsed.map(|(server, mode)| LockUrl { address: Address::Server(server.into()), mode });
    }
    let Some(&(_, scheme)) = SCHEMES.iter().find(|(name, _)| name.eq_ignore_ascii_case(scheme)) else {
        let known: Vec<&str> = SCHEMES.iter().map(|&(name, _)| name).chain(server_url::SCHEMES).collect();
        return Err(format!("the scheme {scheme:?} is none of {}", known.join(", ")));
    };
    if rest.contains('#') {
        return Err("it has a fragment; write a # in a path as %23".into());
    }
    let (rest, mode) = match rest.split_once('?') {
        None => (rest, Mode::Exclusive),
        Some((rest, SHARED)) => (rest, Mode::Shared),
        Some((_, query)) => {
            let help = "the only query is ?shared, and a question mark in a path is written as %3F";
            return Err(format!("it has the query {:?}; {help}", quote(query, shown)));
        }
    };
    let path = match rest.strip_prefix("//") {
        None => rest,
        Some(rest) => {
            let (host, _) = rest.split_once('/').unwrap_or((rest, ""));
            if !(host.is_empty() || host.eq_ignore_ascii_case("localhost")) {
                // In front of the host there may be a password, or in the place of its port.
                let host = host.rsplit('@').next().and_then(|host| host.split(':').next()).unwrap_or_default();
                return Err(format!("it names another host, {:?}; a lock file is on this one", quote(host, shown)));
            }
            &rest[host.len()..]
        }
    };
    let path = decode(path)?;
    let is_null = scheme == Scheme::Explicit(LockKind::Null);
    if path.is_empty() && !is_null {
        return Err("its path is empty".into());
    }
    Ok(LockUrl { address: Address::File { scheme, path: path.into() }, mode })
}

fn decode(path: &str) -> Result<OsString, String> {
    percent::check(path)?;
    let bytes: Vec<u8> = percent_decode_str(path).collect();
    if bytes.contains(&0) {
        return Err("its path contains a NUL byte".into());
    }
    os_string(bytes)
}

#[cfg(unix)]
fn os_string(bytes: Vec<u8>) -> Result<OsString, String> {
    Ok(std::os::unix::ffi::OsStringExt::from_vec(bytes))
}

#[cfg(windows)]
fn os_string(bytes: Vec<u8>) -> Result<OsString, String> {
    let path = String::from_utf8(bytes).map_err(|_| "its path is not UTF-8")?;
    // The path /C:/dir means C:/dir (RFC 8089, appendix E.2).
    match path.as_bytes() {
        [b'/', drive, b':', ..] if drive.is_ascii_alphabetic() => Ok(path[1..].into()),
        _ => Ok(path.into()),
    }
}

#[cfg(unix)]
fn bytes(path: &OsStr) -> std::borrow::Cow<'_, [u8]> {
    std::os::unix::ffi::OsStrExt::as_bytes(path).into()
}

#[cfg(windows)]
fn bytes(path: &OsStr) -> std::borrow::Cow<'_, [u8]> {
    let path = path.to_string_lossy();
    // The prefix only turns off the path normalization of Windows. The path without the prefix leads to the same file.
    let path = match path.strip_prefix(r"\\?\UNC\") {
        Some(share) => format!(r"\\{share}"),
        None => path.strip_prefix(r"\\?\").unwrap_or(&path).to_owned(),
    };
    let path = path.replace('\\', "/");
    match path.as_bytes() {
        [drive, b':', b'/', ..] if drive.is_ascii_alphabetic() => format!("/{path}").into_bytes().into(),
        _ => path.into_bytes().into(),
    }
}

/// Prints `SCHEME:///abs` or `SCHEME:relative`, percent-encoded, and for a shared handle `?shared` behind it. The URL
/// of a lock on a server is printed without its password. The printed text parses to an equal URL.
impl fmt::Display for LockUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, path) = match &self.address {
            Address::Server(server) => return server.in_mode(self.mode).fmt(f),
            Address::File { scheme, path } => (scheme, bytes(path.as_os_str())),
        };
        let (scheme, _) = SCHEMES.iter().find(|(_, other)| other == scheme).expect("all schemes have a name");
        let authority = if path.starts_with(b"/") { "//" } else { "" };
        write!(f, "{scheme}:{authority}{}", percent_encode(&path, ESCAPED))?;
        match self.mode {
            Mode::Exclusive => Ok(()),
            Mode::Shared => write!(f, "?{SHARED}"),
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

        pub(crate) fn server(&self) -> Option<&ServerUrl> {
            match &self.address {
                Address::File { .. } => None,
                Address::Server(server) => Some(server),
            }
        }
    }

    fn reason(url: &str) -> String {
        match url.parse::<LockUrl>() {
            Err(LockError::InvalidUrl { reason, url: named }) => {
                assert_eq!(named, url);
                reason
            }
            other => panic!("{url}: {other:?}"),
        }
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
        assert!(reason("/run/app.lock").contains("no scheme"));
        assert!(reason("file:/run/app.lock").contains("scheme \"file\""));
        assert!(reason("lockfile://example.org/run/x").contains("example.org"));
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
    }

    #[cfg(unix)]
    #[test]
    fn bytes_that_are_not_utf8_survive() {
        let url: LockUrl = "shlockfile:/a%FFb".parse().unwrap();
        assert_eq!(url.path().as_os_str().as_encoded_bytes(), b"/a\xffb");
        assert_eq!(url.to_string(), "shlockfile:///a%FFb");
    }
}
