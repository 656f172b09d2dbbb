//! What a person reads when the server is none, or another one. Small programs stand for the servers.

use std::io::{Read, Write};
use std::net::TcpListener;

use tokio_lockfile::LockFile;

/// Accepts one connection after another. It reads what comes, gives this answer, and closes the connection.
fn server(answer: &'static [u8]) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.read(&mut [0; 1_000]);
            let _ = stream.write_all(answer);
        }
    });
    port
}

/// A port at which nobody listens.
fn closed() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

async fn said(url: String) -> String {
    LockFile::open(&url).unwrap().attempt().await.unwrap_err().to_string()
}

#[cfg(feature = "postgres")]
#[tokio::test]
async fn a_server_that_is_not_postgresql_is_told_so() {
    let url = |port, more| format!("postgres://app@127.0.0.1:{port}/app?lock=x&connect_timeout=1s&sslmode={more}");
    // etcd answers in HTTP, or waits for the rest of a request.
    for mode in ["disable", "prefer"] {
        let said = said(url(server(b"HTTP/1.1 400 Bad Request\r\n\r\n"), mode)).await;
        assert!(said.ends_with("; is it the port of PostgreSQL?"), "{said}");
        let said = self::said(url(server(b""), mode)).await;
        assert!(said.ends_with("; is it the port of PostgreSQL?"), "{said}");
        let said = self::said(url(closed(), mode)).await;
        assert!(said.contains("Connection refused") && said.ends_with("; does PostgreSQL run there?"), "{said}");
    }
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let said = said(url(silent.local_addr().unwrap().port(), "disable")).await;
    assert!(said.ends_with("the server has not answered for 1s; is it the port of PostgreSQL?"), "{said}");
}

#[cfg(feature = "postgres")]
#[tokio::test]
async fn a_missing_password_is_told_with_the_places_for_it() {
    // AuthenticationCleartextPassword
    let port = server(b"R\0\0\0\x08\0\0\0\x03");
    let said = said(format!("postgres://app@127.0.0.1:{port}/app?lock=x&sslmode=disable")).await;
    assert!(said.contains("password missing; ") && said.contains("PGPASSWORD"), "{said}");
}

#[cfg(feature = "postgres-tls")]
#[tokio::test]
async fn a_server_without_tls_is_told_with_the_parameter() {
    let url = |answer, mode| format!("postgres://app@127.0.0.1:{}/app?lock=x&sslmode={mode}", server(answer));
    let said = said(url(b"N", "require")).await;
    assert!(said.contains("the server has no TLS, but TLS is required; ") && said.contains("sslmode"), "{said}");
}

#[cfg(feature = "etcd")]
#[tokio::test]
async fn a_server_that_is_not_etcd_is_told_so() {
    let url = |port, tls| format!("etcd://127.0.0.1:{port}/x?connect_timeout=3s{tls}");
    // PostgreSQL says nothing and closes the connection.
    let said = said(url(server(b""), "")).await;
    assert!(said.contains("; is it the port of etcd?") && said.contains("tls=on"), "{said}");
    let said = self::said(url(server(b""), "&tls=on")).await;
    assert!(said.contains("; is it the port of etcd?") && said.contains("tls=off"), "{said}");
    let said = self::said(url(closed(), "")).await;
    assert!(said.contains("Connection refused") && said.ends_with("; does etcd run there?"), "{said}");
}

/// An answer that is certainly none of etcd is told at once: a server of HTTP/1, of PostgreSQL, and of TLS (an alert).
#[cfg(feature = "etcd")]
#[tokio::test]
async fn a_server_that_certainly_is_not_etcd_is_told_at_once() {
    for answer in [&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], b"E\0\0\0\x08fail", b"\x15\x03\x01\0\x02\x02\x0a"] {
        for user in ["", "app:pw@"] {
            let hosts = format!("127.0.0.1:{},127.0.0.1:{}", server(answer), server(answer));
            let asked = said(format!("etcd://{user}{hosts}/x?connect_timeout=9m"));
            let said = tokio::time::timeout(crate::support::HANG, asked).await.expect("it goes on trying");
            assert!(said.contains("HTTP/2") && said.contains("; is it the port of etcd?"), "{said}");
            assert!(said.contains("tls=on"), "{said}");
        }
    }
}

/// A server may say why it ends the connection before it says anything else, as that of Go does.
#[cfg(feature = "etcd")]
#[tokio::test]
async fn a_server_that_speaks_http2_and_has_to_end_is_asked_again() {
    let url = format!("etcd://127.0.0.1:{}/x?connect_timeout=1s", server(b"\0\0\x08\x07\0\0\0\0\0\0\0\0\0\0\0\0\0"));
    let said = said(url).await;
    assert!(!said.contains("does not speak HTTP/2"), "{said}");
}
