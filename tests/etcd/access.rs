//! Who may use a cluster: passwords, tokens and certificates.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tokio_lockfile::{LockError, LockFile};

use crate::cluster::{Cluster, Settings};
use crate::set_uid::{self, Program};
use crate::support::{HANG, take};

/// A cluster that lets in `root` and `app`, with the password `S3cretPw`.
pub(crate) fn guarded(members: usize, settings: Settings) -> Cluster {
    let cluster = Cluster::with(members, settings);
    for command in [
        "user add root:S3cretPw",
        "user grant-role root root",
        "user add app:S3cretPw",
        "role add app",
        "role grant-permission app --prefix=true readwrite app/",
        "user grant-role app app",
        "auth enable",
    ] {
        cluster.ask(&command.split(' ').collect::<Vec<_>>());
    }
    cluster
}

pub(crate) fn url(cluster: &Cluster, user: &str, name: &str) -> String {
    format!("etcd://{user}@{}/{name}?ttl=3s&connect_timeout=2s", cluster.endpoints())
}

#[tokio::test]
async fn a_user_and_a_password() {
    let cluster = guarded(3, Settings::default());
    let lock = LockFile::open(&url(&cluster, "app:S3cretPw", "app/x")).unwrap();
    let guard = take(&lock).await;
    assert_eq!(lock.holder().await.unwrap().unwrap().pid(), std::process::id());
    let other = LockFile::open(&url(&cluster, "root:S3cretPw", "app/x")).unwrap();
    assert!(other.attempt().await.unwrap().is_none());
    // Longer than a lease: its beats are let in too.
    assert!(tokio::time::timeout(Duration::from_secs(4), guard.lost()).await.is_err());
    guard.release().await.unwrap();

    for (user, name, what) in [
        ("app:wr0ngPw", "app/x", "authentication failed"),
        ("nobody:wr0ngPw", "app/x", "authentication failed"),
        ("app:S3cretPw", "other/x", "permission denied"),
    ] {
        let lock = LockFile::open(&url(&cluster, user, name)).unwrap();
        for error in
            [lock.attempt().await.unwrap_err(), lock.obtain().await.unwrap_err(), lock.holder().await.unwrap_err()]
        {
            let shown = format!("{error} {error:?} {lock:?} {}", lock.url());
            assert!(matches!(error, LockError::Engine { .. }) && shown.contains(what), "{shown}");
            assert!(!shown.contains("S3cretPw") && !shown.contains("wr0ngPw"), "{shown}");
        }
    }
    let without = LockFile::open(&cluster.url("app/x", "")).unwrap();
    let error = without.attempt().await.unwrap_err();
    assert!(error.to_string().contains("user name is empty"), "{error}");
}

/// The tokens of this cluster end after two seconds, whether they are in use or not.
pub(crate) fn with_short_tokens(keys: &Path) -> Cluster {
    let (private, public) = (keys.join("private.pem"), keys.join("public.pem"));
    openssl(&["genrsa", "-out", private.to_str().unwrap(), "2048"]);
    openssl(&["rsa", "-in", private.to_str().unwrap(), "-pubout", "-out", public.to_str().unwrap()]);
    make_readable(keys);
    let token = format!("jwt,pub-key={},priv-key={},sign-method=RS256,ttl=2s", public.display(), private.display());
    guarded(3, Settings { arguments: vec!["--auth-token".into(), token], ..Settings::default() })
}

#[tokio::test]
async fn a_token_that_ends_is_renewed() {
    let keys = tempfile::tempdir().unwrap();
    let cluster = with_short_tokens(keys.path());
    let lock = LockFile::open(&url(&cluster, "app:S3cretPw", "app/x")).unwrap();
    let guard = take(&lock).await;
    for _ in 0..4 {
        assert!(tokio::time::timeout(Duration::from_secs(2), guard.lost()).await.is_err());
        assert!(guard.is_held());
        let other = LockFile::open(&url(&cluster, "app:S3cretPw", "app/y")).unwrap();
        take(&other).await.release().await.unwrap();
    }
    guard.release().await.unwrap();
}

/// It takes connections and says nothing. The other member comes back while we log in to the silent one.
#[tokio::test]
async fn a_member_that_comes_back_beside_a_silent_one() {
    let mut cluster = guarded(1, Settings::default());
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoints = format!("{},{}", silent.local_addr().unwrap(), cluster.endpoint(0));
    let url = format!("etcd://app:S3cretPw@{endpoints}/app/x?ttl=3s&connect_timeout=20s");
    cluster.kill(0);
    let lock = LockFile::open(&url).unwrap();
    let (guard, ()) = tokio::join!(lock.attempt(), async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        cluster.start(0);
    });
    guard.unwrap().expect("it is free").release().await.unwrap();
}

#[tokio::test]
async fn tls_with_and_without_trust() {
    let authority = Authority::new();
    let (certificate, key) = authority.certify("server", "subjectAltName=DNS:localhost,IP:127.0.0.1");
    let (client, client_key) = authority.certify("client", "extendedKeyUsage=clientAuth");
    let arguments =
        ["--cert-file", &certificate, "--key-file", &key, "--trusted-ca-file", &authority.root(), "--client-cert-auth"];
    let arguments = arguments.map(str::to_owned).to_vec();
    let identity = Some((client.clone(), client_key.clone()));
    let cluster = Cluster::with(3, Settings { arguments, tls: true, identity, ..Settings::default() });
    let open = |more: String| LockFile::open(&cluster.url("x", &format!("&connect_timeout=2s{more}"))).unwrap();
    let identity = format!("&cert={client}&key={client_key}");

    let lock = open(format!("&cacert={}{identity}", authority.root()));
    let guard = take(&lock).await;
    assert!(lock.holder().await.unwrap().is_some());
    guard.release().await.unwrap();

    let stranger = Authority::new();
    for (more, what) in [
        (format!("&tls=on{identity}"), "UnknownIssuer"),
        (format!("&cacert={}{identity}", stranger.root()), "certificate"),
        // The server refuses after it has begun, so the connection may break before its reason arrives.
        (format!("&cacert={}", authority.root()), "etcd://"),
        (format!("&cacert={}", authority.dir.path().join("missing").display()), "missing"),
        (String::new(), "etcd://"),
    ] {
        let error = tokio::time::timeout(HANG, open(more.clone()).attempt()).await.unwrap().unwrap_err();
        println!("{error}");
        assert!(error.to_string().contains(what), "{more}: {error}");
    }
}

/// The caller of such a program chooses its environment.
#[test]
fn a_set_uid_program_takes_nothing_from_the_environment() {
    const TEST: &str = "access::a_set_uid_program_takes_nothing_from_the_environment";
    const ROLE: &str = "TOKIO_LOCKFILE_TEST_SET_UID";
    if std::env::var_os(ROLE).is_some() {
        let opened = LockFile::open("etcd://app@127.0.0.1/x");
        println!("{}", opened.map_or_else(|error| error.to_string(), |_| "there is a password".into()));
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("etcd://127.0.0.1:{}/x?tls=on&connect_timeout=1s", port.local_addr().unwrap().port());
        return println!("{}", runtime.block_on(LockFile::open(&url).unwrap().attempt()).unwrap_err());
    }
    let Some(program) = Program::new() else { return };
    let run = |mode| {
        let mut command = program.run(mode, TEST);
        let output =
            command.env(ROLE, "1").env("ETCDCTL_PASSWORD", "S3cretPw").env("SSL_CERT_FILE", "/ca.pem").output();
        String::from_utf8(output.unwrap().stdout).unwrap()
    };
    let ordinary = run(0o755);
    assert!(ordinary.contains("there is a password") && !ordinary.contains("SSL_CERT_FILE"), "{ordinary}");
    for mode in set_uid::MODES {
        let said = run(mode);
        assert!(said.contains("a user but no password") && said.contains("SSL_CERT_FILE is set"), "{mode:o}: {said}");
    }
}

/// A certificate authority in a folder.
struct Authority {
    dir: tempfile::TempDir,
}

impl Authority {
    fn new() -> Self {
        let this = Self { dir: tempfile::tempdir().unwrap() };
        let (key, root) = (this.file("ca.key"), this.root());
        openssl(&[
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=test", "-keyout", &key, "-out", &root,
        ]);
        make_readable(this.dir.path());
        this
    }

    fn root(&self) -> String {
        self.file("ca.pem")
    }

    fn file(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    /// The PEM files of a certificate and of its key.
    fn certify(&self, name: &str, extension: &str) -> (String, String) {
        let file = |suffix| self.file(&format!("{name}.{suffix}"));
        let (certificate, key, request, extensions) = (file("pem"), file("key"), file("csr"), file("ext"));
        std::fs::write(&extensions, extension).unwrap();
        let subject = format!("/CN={name}");
        openssl(&["req", "-newkey", "rsa:2048", "-nodes", "-subj", &subject, "-keyout", &key, "-out", &request]);
        let (root, root_key) = (self.root(), self.file("ca.key"));
        openssl(&[
            "x509",
            "-req",
            "-in",
            &request,
            "-CA",
            &root,
            "-CAkey",
            &root_key,
            "-CAcreateserial",
            "-extfile",
            &extensions,
            "-out",
            &certificate,
        ]);
        make_readable(self.dir.path());
        (certificate, key)
    }
}

fn openssl(arguments: &[&str]) {
    let output = Command::new("openssl").args(arguments).output().expect("openssl is missing");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The servers run as another user.
fn make_readable(dir: &Path) {
    use std::os::unix::fs::PermissionsExt;
    let all = |mode| std::fs::Permissions::from_mode(mode);
    std::fs::set_permissions(dir, all(0o755)).unwrap();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path: PathBuf = entry.unwrap().path();
        std::fs::set_permissions(path, all(0o644)).unwrap();
    }
}
