//! What is demanded of a login, and where its password comes from.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use tokio_lockfile::LockFile;

use crate::middle::{self, CLEARTEXT, MD5, Middle, TRUST};
use crate::server::{Server, write_for_unprivileged};
use crate::set_uid::{self, Program};
use crate::support::{take, this_program};
use crate::tls::{Certificates, psql};
use crate::whole_log::WholeLog;

const PASSWORD: &str = "S3cretPw";

async fn attempt(host: &str, parameters: &str) -> Result<(), String> {
    let url = format!("postgres://app:{PASSWORD}@{host}/postgres?lock=x&{parameters}");
    let lock = LockFile::open(&url).map_err(|error| error.to_string())?;
    let guard = lock.attempt().await.map_err(|error| error.to_string())?;
    guard.expect("it is free").release().await.map_err(|error| error.to_string())
}

/// A server with TLS, and with the role `app` that has a password.
async fn server_with_password(access: &str) -> Server {
    let certificates = Certificates::new();
    let mut server = Server::prepare("127.0.0.1");
    certificates.give_to(&server);
    server.configure("ssl = on");
    server.run();
    let client = server.client().await;
    client.simple_query(&format!("CREATE ROLE app LOGIN PASSWORD '{PASSWORD}'")).await.unwrap();
    server.set_access(&format!("local all all trust\n{access}\n"));
    server
}

/// Without TLS, or with TLS that verifies nothing, a man in the middle asks for the password as he likes.
#[tokio::test]
async fn only_a_method_that_is_required_gets_an_answer() {
    let certificates = Certificates::new();
    let certificate = middle::certificate(&certificates.path(""), "server");
    for (mode, certificate) in [("disable", None), ("prefer", None), ("require", Some(certificate))] {
        for (required, request, reason) in [
            ("scram-sha-256", CLEARTEXT, "server requested a cleartext password"),
            ("scram-sha-256,none", CLEARTEXT, "server requested a cleartext password"),
            ("!password", CLEARTEXT, "server requested a cleartext password"),
            ("scram-sha-256", MD5, "server requested a hashed password"),
            ("!md5,!password", MD5, "server requested a hashed password"),
            ("scram-sha-256,password,md5", TRUST, "server did not complete authentication"),
            ("!none", TRUST, "server did not complete authentication"),
        ] {
            let man = Middle::start(certificate.clone(), request);
            let parameters = format!("sslmode={mode}&require_auth={required}");
            let error = attempt(&format!("127.0.0.1:{}", man.port), &parameters).await.unwrap_err();
            assert_eq!(man.stolen(), [""; 0], "{parameters}");
            let reason = format!("authentication method requirement \"{required}\" failed: {reason}");
            assert!(error.contains(&reason), "{parameters}: {error}");
        }
        // The same man gets it where nothing is required.
        let man = Middle::start(certificate, CLEARTEXT);
        attempt(&format!("127.0.0.1:{}", man.port), &format!("sslmode={mode}")).await.unwrap_err();
        assert!(man.stolen().contains(&PASSWORD.to_owned()), "{mode}");
    }
}

#[tokio::test]
async fn what_is_required_of_a_login_can_be_had() {
    let server = server_with_password("hostssl all app all scram-sha-256\nhostnossl all app all md5").await;
    for parameters in [
        "require_auth=scram-sha-256",
        "require_auth=!password,!md5",
        "channel_binding=require",
        "channel_binding=disable&sslmode=require",
        "channel_binding=require&require_auth=scram-sha-256&sslmode=require",
        "target_session_attrs=read-write&application_name=nightly&sslmode=disable",
    ] {
        attempt(&server.host(), parameters).await.unwrap_or_else(|error| panic!("{parameters}: {error}"));
    }
    for (parameters, reason) in [
        // A SCRAM password is asked for by SCRAM also where the rule says md5.
        ("require_auth=md5&sslmode=disable", "server requested SASL authentication"),
        ("channel_binding=require&sslmode=disable", "needs TLS"),
    ] {
        let error = attempt(&server.host(), parameters).await.unwrap_err();
        assert!(error.contains(reason), "{parameters}: {error}");
    }
}

/// Under prefer, anybody on the way can say that there is no TLS.
#[tokio::test]
async fn a_login_that_must_be_bound_does_not_happen_without_tls() {
    let (plain, certificates) = (Middle::start(None, CLEARTEXT), Certificates::new());
    let encrypted = Middle::start(Some(middle::certificate(&certificates.path(""), "server")), CLEARTEXT);
    for (man, reason) in [(plain, "SSL not in use"), (encrypted, "not supported by server's authentication request")] {
        let error = attempt(&format!("127.0.0.1:{}", man.port), "channel_binding=require").await.unwrap_err();
        assert_eq!(man.stolen(), [""; 0]);
        assert!(error.contains(reason), "{error}");
    }
}

/// As with psql: a Unix socket has no TLS, and none is asked for.
#[tokio::test]
async fn at_a_unix_socket_only_the_login_can_be_demanded() {
    let server = server_with_password("").await;
    let host = server.dir().display().to_string().replace('/', "%2F");
    for mode in ["disable", "prefer", "require", "verify-ca", "verify-full"] {
        let (parameters, port) = (format!("sslmode={mode}"), server.port);
        attempt(&format!("{host}:{port}"), &parameters).await.unwrap_or_else(|error| panic!("{mode}: {error}"));
        assert!(psql(&format!("postgres://app@{host}:{port}/postgres?{parameters}")));
        if mode != "disable" {
            let parameters = format!("{parameters}&channel_binding=require");
            let error = attempt(&format!("{host}:{port}"), &parameters).await.unwrap_err();
            assert!(error.contains("SSL not in use"), "{error}");
            assert!(!psql(&format!("postgres://app@{host}:{port}/postgres?{parameters}")));
        }
    }
}

#[tokio::test]
async fn the_server_shows_the_application_name_of_the_url() {
    let server = Server::shared();
    let lock = server.lock("lock=application&application_name=night+ly");
    let guard = take(&lock).await;
    assert_eq!(lock.holder().await.unwrap().unwrap().name(), Some("night_ly"));
    guard.release().await.unwrap();
}

/// As psql. The log has the warning once, however often the file is passed over.
#[test]
fn a_password_file_that_others_can_read_is_passed_over_with_a_warning() {
    const TEST: &str = "login::a_password_file_that_others_can_read_is_passed_over_with_a_warning";
    const FILE: &str = "TOKIO_LOCKFILE_TEST_PASSFILE";
    let Ok(file) = std::env::var(FILE) else {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pgpass");
        std::fs::write(&file, format!("*:*:*:*:{PASSWORD}\n")).unwrap();
        for (file, mode) in [(&*file, 0o640), (dir.path(), 0o700)] {
            std::fs::set_permissions(file, std::fs::Permissions::from_mode(mode)).unwrap();
            let mut this = this_program();
            this.args([TEST, "--exact", "--nocapture"]).env(FILE, file).env("PGPASSFILE", file);
            let output = this.output().unwrap();
            assert!(output.status.success(), "{output:?}");
        }
        return;
    };
    let log = WholeLog::begin();
    let man = Middle::start(None, CLEARTEXT);
    let url = format!("postgres://app@127.0.0.1:{}/postgres?lock=x", man.port);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for _ in 0..2 {
        let error = runtime.block_on(LockFile::open(&url).unwrap().attempt()).unwrap_err();
        assert!(error.to_string().contains("password missing"), "{error}");
    }
    assert_eq!(man.stolen(), [""; 0]);
    let words = match Path::new(&file).is_dir() {
        true => format!("password file {file:?} is not a plain file"),
        false => format!("password file {file:?} has group or world access; permissions should be u=rw (0600) or less"),
    };
    let log = log.text();
    assert_eq!(log.matches(&words).count(), 1, "{log}");
}

/// The caller of such a program chooses its environment. He gets no password by it, and nobody is trusted for it.
#[test]
fn a_set_uid_program_takes_nothing_from_the_environment() {
    const TEST: &str = "login::a_set_uid_program_takes_nothing_from_the_environment";
    const ROLE: &str = "TOKIO_LOCKFILE_TEST_SET_UID";
    if let Ok(ports) = std::env::var(ROLE) {
        return tokio::runtime::Runtime::new().unwrap().block_on(try_as_set_uid(&ports));
    }
    let Some(program) = Program::new() else { return };
    let certificates = Certificates::new();
    let certificate = middle::certificate(&certificates.path(""), "server");
    let (root, passwords) = (program.dir.path().join("root"), program.dir.path().join("pgpass"));
    std::fs::copy(certificates.path("ca.crt"), &root).unwrap();
    write_for_unprivileged(&passwords, &format!("*:*:*:*:{PASSWORD}\n"));
    let run = |mode| {
        let (plain, encrypted) = (Middle::start(None, CLEARTEXT), Middle::start(Some(certificate.clone()), CLEARTEXT));
        let mut command = program.run(mode, TEST);
        command.env(ROLE, format!("{} {}", plain.port, encrypted.port)).env("SSL_CERT_FILE", &root);
        command.env("PGPASSWORD", PASSWORD).env("PGSSLROOTCERT", &root).env("PGPASSFILE", &passwords);
        let output = command.env("PGHOST", "127.0.0.1").env("PGPORT", plain.port.to_string()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let is_lured = |man: Middle| man.stolen().contains(&PASSWORD.to_owned());
        [is_lured(plain), is_lured(encrypted)]
    };
    assert_eq!(run(0o755), [true, true], "the environment counts for an ordinary program");
    for mode in set_uid::MODES {
        assert_eq!(run(mode), [false, false], "{mode:o}");
    }
}

async fn try_as_set_uid(ports: &str) {
    let (plain, encrypted) = ports.split_once(' ').unwrap();
    for url in [
        "postgres://app@/postgres?lock=x".to_owned(),
        format!("postgres://app@127.0.0.1:{plain}/postgres?lock=x"),
        format!("postgres://app:{PASSWORD}@localhost:{encrypted}/postgres?lock=x&sslmode=verify-ca"),
        format!("postgres://app:{PASSWORD}@localhost:{encrypted}/postgres?lock=x&sslrootcert=system"),
    ] {
        let error = LockFile::open(&url).unwrap().attempt().await.unwrap_err();
        println!("{error}");
    }
}
