//! A server whose words would harm a terminal or forge a log.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};

use crate::evil_words::{EVIL, assert_errors_are_harmless, assert_harmless};
use crate::support::in_own_process;
use crate::whole_log::WholeLog;

/// A message of the server ("Message Formats" in the manual of PostgreSQL).
fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap();
    [&[tag], &length.to_be_bytes()[..], body].concat()
}

/// What ErrorResponse and NoticeResponse say.
fn words(severity: &str, code: &str, text: &str) -> Vec<u8> {
    format!("S{severity}\0C{code}\0M{text}\0\0").into_bytes()
}

/// Accepts every user and says `notice`. Answers each statement with an error.
fn serve(mut client: TcpStream) -> std::io::Result<()> {
    let mut length = [0; 4];
    client.read_exact(&mut length)?;
    client.read_exact(&mut vec![0; u32::from_be_bytes(length) as usize - 4])?;
    let notice = message(b'N', &words("NOTICE", "00000", EVIL));
    let welcome = [message(b'R', &[0; 4]), notice.clone(), message(b'Z', b"I")].concat();
    client.write_all(&welcome)?;
    client.read_exact(&mut [0])?;
    let refusal = words(&format!("FATAL{EVIL}"), EVIL, &(EVIL.to_owned() + &"x".repeat(100_000)));
    client.write_all(&[notice, message(b'E', &refusal)].concat())?;
    client.shutdown(Shutdown::Write)?;
    std::io::copy(&mut client, &mut std::io::sink()).map(drop)
}

#[test]
fn what_a_server_says_is_harmless_where_it_is_shown_and_logged() {
    if !in_own_process("words::what_a_server_says_is_harmless_where_it_is_shown_and_logged") {
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            std::thread::spawn(move || serve(client.unwrap()));
        }
    });
    let log = WholeLog::begin();
    let url = format!("postgres://a@127.0.0.1:{port},127.0.0.1:{port}/a?lock=x&sslmode=disable");
    tokio::runtime::Runtime::new().unwrap().block_on(assert_errors_are_harmless(&url));
    let log = log.text();
    assert!(log.contains("tokio_postgres"), "{log}");
    log.lines().for_each(assert_harmless);
    // Nothing that a server says is the business of the one who reads the log.
    assert!(!log.contains("sshd"), "{log}");
}
