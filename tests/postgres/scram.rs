//! Logins by SCRAM that need much computation, or are bound to the server's certificate.

use tokio::time::timeout;
use tokio_lockfile::LockFile;

use crate::pools::PgBouncer;
use crate::server::{Server, write_for_unprivileged};
use crate::support::HANG;
use crate::tls::{Certificates, psql};

const PASSWORD: &str = "S3cretPw";

/// What a server keeps of that password with 110,000 rounds, as PostgreSQL 16 makes it where `scram_iterations` says so.
const VERIFIER: &str = "SCRAM-SHA-256$110000:c2FsdHNhbHRzYWx0c2FsdA==$aGrb5+6PKyavQFikyVlSTs8muSt7BAAK0kgGyveiK6U=:\
                        M01wMdF42Ot6MD6urH+38hEshQw4sirlY+2yiJeVgrg=";

async fn server_with_role(certificates: &Certificates) -> Server {
    let mut server = Server::prepare("127.0.0.1");
    certificates.give_to(&server);
    server.configure("ssl = on");
    server.run();
    let client = server.client().await;
    client.simple_query(&format!("CREATE ROLE app LOGIN PASSWORD '{VERIFIER}'")).await.unwrap();
    server.set_access("local all all trust\nhost all all all scram-sha-256\n");
    server
}

async fn attempt(host: &str, password: &str, parameters: &str) -> Result<(), String> {
    // On a machine that has much else to do.
    let url = format!("postgres://app:{password}@{host}/postgres?lock=x&connect_timeout=2m&{parameters}");
    let guard = timeout(HANG, LockFile::open(&url).unwrap().attempt()).await.expect("hangs");
    guard.map_err(|error| error.to_string())?.expect("it is free").release().await.map_err(|error| error.to_string())
}

/// As with psql.
#[tokio::test]
async fn a_password_that_is_hashed_in_many_rounds_gets_in() {
    let server = server_with_role(&Certificates::new()).await;
    for parameters in ["sslmode=disable", "sslmode=require&channel_binding=require"] {
        attempt(&server.host(), PASSWORD, parameters).await.unwrap_or_else(|error| panic!("{parameters}: {error}"));
        assert!(psql(&format!("postgres://app:{PASSWORD}@{}/postgres?{parameters}", server.host())));
    }
    let error = attempt(&server.host(), "wr0ng", "sslmode=disable").await.unwrap_err();
    assert!(error.contains("28P01") && !error.contains("wr0ng"), "{error}");
}

#[tokio::test]
async fn a_pool_may_ask_for_many_rounds() {
    let server = Server::start("");
    let client = server.client().await;
    client.simple_query("CREATE ROLE app LOGIN").await.unwrap();
    let users = server.dir().join("pool-users");
    write_for_unprivileged(&users, &format!("\"app\" \"{VERIFIER}\"\n"));
    let access = format!("auth_type = scram-sha-256\nauth_file = {}", users.display());
    let bouncer = PgBouncer::start(&server, "session", &access);
    let host = format!("127.0.0.1:{}", bouncer.port());
    attempt(&host, PASSWORD, "sslmode=disable").await.unwrap();
}

/// The hash of the certificate that a login is bound to depends on how the certificate is signed (RFC 5929).
#[tokio::test]
async fn a_login_is_bound_to_certificates_of_every_signature() {
    for (key, hash) in [("ec", "sha1"), ("ec", "sha384"), ("ec", "sha512"), ("rsa", "sha256"), ("rsa", "sha512")] {
        let certificates = Certificates::new();
        certificates.replace(key, hash);
        let mut server = Server::prepare("127.0.0.1");
        certificates.give_to(&server);
        server.configure("ssl = on\nssl_ciphers = 'ALL:@SECLEVEL=0'");
        server.run();
        let client = server.client().await;
        client.simple_query(&format!("CREATE ROLE app LOGIN PASSWORD '{PASSWORD}'")).await.unwrap();
        server.set_access("local all all trust\nhost all all all scram-sha-256\n");
        let parameters = "sslmode=require&channel_binding=require";
        attempt(&server.host(), PASSWORD, parameters).await.unwrap_or_else(|error| panic!("{key} {hash}: {error}"));
        assert!(psql(&format!("postgres://app:{PASSWORD}@{}/postgres?{parameters}", server.host())), "{key} {hash}");
    }
}
