//! TLS, as libpq means its modes.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;
use tokio_lockfile::LockFile;

use crate::middle::{self, Middle};
use crate::server::{Server, succeed, value, write_for_unprivileged};
use crate::support::take;

/// Authorities, and certificates of theirs.
pub(crate) struct Certificates(TempDir);

impl Certificates {
    /// Two authorities, and a certificate `server` of the first one for the name localhost.
    pub(crate) fn new() -> Self {
        let certificates = Self(TempDir::new().unwrap());
        certificates.found("ca");
        certificates.found("other");
        certificates.certify("server", "ca", "localhost");
        certificates
    }

    fn found(&self, name: &str) {
        self.sign_self(name, &["-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=keyCertSign"]);
    }

    fn sign_self(&self, name: &str, extensions: &[&str]) {
        self.openssl(&["req", "-x509", "-nodes", "-days", "30", "-subj", &format!("/CN={name}")])
            .args(["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"])
            .args(["-keyout", &format!("{name}.key"), "-out", &format!("{name}.crt")])
            .args(extensions)
            .succeeds();
    }

    fn certify(&self, name: &str, authority: &str, host: &str) {
        let [key, request, certificate, extensions] = ["key", "csr", "crt", "ext"].map(|end| format!("{name}.{end}"));
        let [root, root_key] = ["crt", "key"].map(|end| format!("{authority}.{end}"));
        self.openssl(&["req", "-nodes", "-subj", &format!("/CN={host}"), "-newkey", "ec"])
            .args(["-pkeyopt", "ec_paramgen_curve:prime256v1", "-keyout", &key, "-out", &request])
            .succeeds();
        let extension = format!("subjectAltName=DNS:{host}\nbasicConstraints=CA:FALSE\n");
        std::fs::write(self.path(&extensions), extension).unwrap();
        self.openssl(&["x509", "-req", "-in", &request, "-CA", &root, "-CAkey", &root_key, "-days", "30"])
            .args(["-set_serial", "1", "-extfile", &extensions, "-out", &certificate])
            .succeeds();
    }

    fn openssl(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("openssl");
        command.args(arguments).current_dir(self.0.path());
        command
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Another certificate `server`, which signs itself with such a key and such a hash.
    pub(crate) fn replace(&self, key: &str, hash: &str) {
        let option = if key == "rsa" { "rsa_keygen_bits:2048" } else { "ec_paramgen_curve:prime256v1" };
        self.openssl(&["req", "-x509", "-nodes", "-days", "30", "-subj", "/CN=localhost", &format!("-{hash}")])
            .args(["-newkey", key, "-pkeyopt", option, "-keyout", "server.key", "-out", "server.crt"])
            .succeeds();
    }

    pub(crate) fn give_to(&self, server: &Server) {
        for name in ["server.key", "server.crt"] {
            write_for_unprivileged(&server.data().join(name), &std::fs::read_to_string(self.path(name)).unwrap());
        }
    }
}

trait Succeeds {
    fn succeeds(&mut self);
}

impl Succeeds for Command {
    fn succeeds(&mut self) {
        succeed(self);
    }
}

fn lock(server: &Server, host: &str, mode: &str, root: Option<&Path>) -> LockFile {
    let root = root.map(|root| format!("&sslrootcert={}", root.display())).unwrap_or_default().replace('/', "%2F");
    let url = format!("postgres://postgres@{host}:{}/postgres?lock=x&sslmode={mode}{root}", server.port);
    LockFile::open(&url).unwrap()
}

/// Whether the lock can be held over TLS, or why it cannot be held.
async fn is_encrypted(server: &Server, lock: &LockFile) -> Result<bool, String> {
    let guard = lock.attempt().await.map_err(|error| error.to_string())?.expect("it is free");
    let client = server.client().await;
    let is_encrypted = "SELECT ssl FROM pg_stat_ssl JOIN pg_locks USING (pid) WHERE locktype = 'advisory' AND granted";
    let answer = value(&client, is_encrypted).await == "t";
    guard.release().await.unwrap();
    Ok(answer)
}

#[tokio::test]
async fn each_mode_gives_what_it_promises() {
    let certificates = Certificates::new();
    let (ca, other) = (certificates.path("ca.crt"), certificates.path("other.crt"));
    let mut server = Server::prepare("127.0.0.1");
    certificates.give_to(&server);
    server.configure("ssl = on");
    server.run();
    let (name, address) = ("localhost", "127.0.0.1");
    // The mode, the host, the root certificate, and whether the connection is encrypted or refused.
    let cases = [
        ("disable", name, None, Some(false)),
        ("prefer", address, None, Some(true)),
        ("require", address, None, Some(true)),
        // As libpq: with a root certificate, require verifies.
        ("require", address, Some(&ca), Some(true)),
        ("require", name, Some(&other), None),
        ("prefer", name, Some(&other), Some(false)),
        ("verify-ca", address, Some(&ca), Some(true)),
        ("verify-ca", name, Some(&other), None),
        ("verify-ca", name, None, None),
        ("verify-full", name, Some(&ca), Some(true)),
        ("verify-full", address, Some(&ca), None),
        ("verify-full", name, Some(&other), None),
        ("verify-full", name, None, None),
    ];
    for (mode, host, root, expected) in cases {
        let result = is_encrypted(&server, &lock(&server, host, mode, root.map(PathBuf::as_path))).await;
        assert_eq!(result.clone().ok(), expected, "{mode} {host} {root:?}: {result:?}");
        if expected.is_none() {
            let error = result.unwrap_err();
            assert!(error.contains("certificate"), "{error}");
        }
    }
    // The password is bound to the channel of TLS.
    let client = server.client().await;
    client.simple_query("CREATE ROLE app LOGIN PASSWORD 'S3cretPw'").await.unwrap();
    server.set_access("local all all trust\nhostssl all app all scram-sha-256\nhostnossl all postgres all trust\n");
    let url =
        |user: &str, mode: &str| format!("postgres://{user}@localhost:{}/postgres?lock=y&sslmode={mode}", server.port);
    take(&LockFile::open(&url("app:S3cretPw", "require")).unwrap()).await.release().await.unwrap();
    let error = LockFile::open(&url("app:wr0ng", "require")).unwrap().attempt().await.unwrap_err().to_string();
    assert!(error.contains("28P01") && !error.contains("wr0ng"), "{error}");
    // The server wants this user without TLS: prefer goes that way, require does not.
    take(&LockFile::open(&url("postgres", "prefer")).unwrap()).await.release().await.unwrap();
    assert!(LockFile::open(&url("postgres", "require")).unwrap().attempt().await.is_err());
}

#[tokio::test]
async fn a_server_without_tls_is_not_enough_for_require() {
    let server = Server::shared();
    for mode in ["require", "verify-ca", "verify-full"] {
        let error = is_encrypted(server, &lock(server, "127.0.0.1", mode, None)).await.unwrap_err();
        assert!(error.contains("TLS") || error.contains("certificate"), "{mode}: {error}");
    }
    assert_eq!(is_encrypted_alone(server, "prefer").await, Ok(false));
}

async fn is_encrypted_alone(server: &Server, mode: &str) -> Result<bool, String> {
    let guard = lock(server, "127.0.0.1", mode, None).attempt().await.map_err(|error| error.to_string())?;
    guard.expect("it is free").release().await.map_err(|error| error.to_string())?;
    Ok(false)
}

const MODES: [&str; 6] = ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"];

/// What the clients know of authorities.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Root {
    Nothing,
    /// A file in `sslrootcert` that is not there.
    Missing,
    /// A file in `sslrootcert`.
    Named,
    /// `~/.postgresql/root.crt`
    Home,
    /// `sslrootcert=system`
    System,
}

impl Root {
    const ALL: [Self; 5] = [Self::Nothing, Self::Missing, Self::Named, Self::Home, Self::System];
}

/// How the man in the middle goes about it: his certificate, or `None` for a server without TLS.
const MEANS: [Option<&str>; 6] =
    [Some("self"), Some("public-other"), Some("right-other"), None, Some("public-name"), Some("right-name")];

/// Which of the [`MEANS`] give him the password, if he asks for it. The table is that of docs/beyond.md.
fn expected(mode: &str, root: Root) -> [bool; 6] {
    let has_file = matches!(root, Root::Named | Root::Home);
    match (mode, root) {
        ("disable" | "prefer", Root::System) => [false; 6],
        ("disable" | "prefer", _) => [true; 6],
        ("require" | "verify-ca", Root::System) => [false; 6],
        ("require", _) if !has_file => [true, true, true, false, true, true],
        ("require" | "verify-ca", _) if has_file => [false, false, true, false, false, true],
        ("verify-full", _) if has_file => [false, false, false, false, false, true],
        // Who has a certificate of a public authority for the right name is the server, as far as anybody can tell.
        ("verify-full", Root::Nothing | Root::System) => [false, false, false, false, true, false],
        // An error: the file is missing, or the mode is allow.
        _ => [false; 6],
    }
}

/// The same for libpq 15, which knows no `system`: it is the name of a file.
fn expected_of_libpq(mode: &str, root: Root) -> [bool; 6] {
    match (mode, root) {
        ("allow", _) => [true; 6],
        ("disable" | "prefer" | "require", Root::System) => expected(mode, Root::Missing),
        ("verify-full", Root::Nothing | Root::System) => [false; 6],
        _ => expected(mode, root),
    }
}

/// The whole table, for this library and for psql.
#[test]
fn what_a_man_in_the_middle_gets_is_as_with_libpq() {
    const CERTIFICATES: &str = "TOKIO_LOCKFILE_TEST_CERTIFICATES";
    let test = "tls::what_a_man_in_the_middle_gets_is_as_with_libpq";
    if let Ok(certificates) = std::env::var(CERTIFICATES) {
        return try_all_means(Path::new(&certificates));
    }
    let certificates = Certificates(TempDir::new().unwrap());
    certificates.sign_self("self", &["-addext", "subjectAltName=DNS:localhost"]);
    for authority in ["right", "public"] {
        certificates.found(authority);
        certificates.certify(&format!("{authority}-name"), authority, "localhost");
        certificates.certify(&format!("{authority}-other"), authority, "evil.example");
    }
    let without_root = TempDir::new().unwrap();
    for home in [&without_root, &middle::home_with_root(&certificates.path("right.crt"))] {
        let mut this = crate::support::this_program();
        this.args([test, "--exact", "--nocapture"]).env(CERTIFICATES, certificates.path("")).env("HOME", home.path());
        // The authorities of the system.
        let output = this.env("SSL_CERT_FILE", certificates.path("public.crt")).output().unwrap();
        let printed = String::from_utf8_lossy(&output.stdout);
        assert!(printed.contains("1 passed"), "{printed}{}", String::from_utf8_lossy(&output.stderr));
    }
}

fn try_all_means(certificates: &Path) {
    let has_root = Path::new(&std::env::var("HOME").unwrap()).join(".postgresql/root.crt").exists();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let men =
        MEANS.map(|means| Middle::start(means.map(|name| middle::certificate(certificates, name)), middle::CLEARTEXT));
    let mut wrong = Vec::new();
    for root in Root::ALL.into_iter().filter(|&root| (root == Root::Home) == has_root) {
        for mode in MODES {
            let parameters = format!("sslmode={mode}{}", root.parameter(certificates));
            let mut check = |client, expected, try_at: &dyn Fn(&str)| {
                // Each try has a password of its own: what arrives late does not count for another one.
                let found = men.each_ref().map(|man| {
                    let password = format!("{client}-{mode}-{root:?}");
                    try_at(&format!("postgres://app:{password}@localhost:{}/app?{parameters}", man.port));
                    man.stolen().contains(&password)
                });
                if found != expected {
                    wrong.push(format!("{client} {mode} {root:?}: {found:?} and not {expected:?}"));
                }
            };
            check("ours", expected(mode, root), &|url| runtime.block_on(is_refused(url)));
            check("psql", expected_of_libpq(mode, root), &|url| assert!(!psql(url)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

impl Root {
    fn parameter(self, certificates: &Path) -> String {
        let file = |name| certificates.join(name).display().to_string().replace('/', "%2F");
        match self {
            Self::Nothing | Self::Home => String::new(),
            Self::Missing => format!("&sslrootcert={}", file("missing.crt")),
            Self::Named => format!("&sslrootcert={}", file("right.crt")),
            Self::System => "&sslrootcert=system".into(),
        }
    }
}

async fn is_refused(url: &str) {
    if let Ok(lock) = LockFile::open(&format!("{url}&lock=x")) {
        lock.attempt().await.unwrap_err();
    }
}

/// Whether psql can connect.
pub(crate) fn psql(url: &str) -> bool {
    let mut psql = Command::new(crate::server::programs().join("psql"));
    psql.args([url, "-X", "-c", "SELECT 1"]).output().unwrap().status.success()
}
