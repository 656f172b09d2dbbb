//! TLS, as libpq means its modes.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;
use tokio_lockfile::LockFile;

use crate::server::{Server, succeed, value, write_for_unprivileged};
use crate::support::take;

/// Two authorities, and a certificate of the first one for the name localhost.
struct Certificates(TempDir);

impl Certificates {
    fn new() -> Self {
        let certificates = Self(TempDir::new().unwrap());
        for name in ["ca", "other"] {
            let subject = format!("/CN={name}");
            let extensions = ["-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=keyCertSign"];
            certificates
                .openssl(&["req", "-x509", "-nodes", "-days", "30", "-subj", &subject])
                .args(["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"])
                .args(["-keyout", &format!("{name}.key"), "-out", &format!("{name}.crt")])
                .args(extensions)
                .succeeds();
        }
        certificates
            .openssl(&["req", "-nodes", "-subj", "/CN=localhost", "-newkey", "ec"])
            .args(["-pkeyopt", "ec_paramgen_curve:prime256v1", "-keyout", "server.key", "-out", "server.csr"])
            .succeeds();
        std::fs::write(certificates.path("ext"), "subjectAltName=DNS:localhost\nbasicConstraints=CA:FALSE\n").unwrap();
        certificates
            .openssl(&["x509", "-req", "-in", "server.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-days", "30"])
            .args(["-set_serial", "1", "-extfile", "ext", "-out", "server.crt"])
            .succeeds();
        certificates
    }

    fn openssl(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("openssl");
        command.args(arguments).current_dir(self.0.path());
        command
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn give_to(&self, server: &Server) {
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
    // A wait that is cancelled sends its request over TLS, too.
    let verified = lock(&server, name, "verify-full", Some(&ca));
    let holder = crate::support::Holder::holding(&verified);
    let wait = server.waiting(&verified, "x").await;
    wait.abort();
    crate::server::until(&server.client().await, &crate::server::sessions("x", false), "0").await;
    holder.release();
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
