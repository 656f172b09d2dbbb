//! The parsers of what a PostgreSQL server says, and of the password file, for fuzzing.

use std::io;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio_postgres::{Config, NoTls, SimpleQueryMessage};

use super::config::Settings;
use super::login::Methods;
use super::scram::Scram;
use super::startup::{Startup, Welcome};
use super::{application, connect, end_point, holders, passfile, token};
use crate::words::holder::Holder;

/// A server that lets everybody in and sends these bytes.
pub(crate) fn answer(bytes: &[u8]) {
    // Authenticated, and ready.
    const WELCOME: &[u8] = b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I";
    block_on(async {
        let (ours, mut theirs) = tokio::io::duplex(1 << 16);
        theirs.write_all(WELCOME).await?;
        let (client, connection) =
            Config::new().user("app").connect_raw(ours, NoTls).await.map_err(io::Error::other)?;
        tokio::spawn(connect::keep_moving(connection, Default::default(), Default::default()));
        let asking = tokio::spawn(async move { client.simple_query("").await });
        theirs.write_all(bytes).await?;
        theirs.shutdown().await?;
        for message in asking.await?.map_err(io::Error::other)? {
            if let SimpleQueryMessage::Row(row) = message {
                check(&holders::holder(&row));
            }
        }
        io::Result::Ok(())
    })
    // A server may end the connection at any moment.
    .unwrap_or_default();
}

/// A name that we make is read again.
pub(crate) fn application_name(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    application::parse(&text, u64::MAX).iter().for_each(check);
    let name = application::compose(&text, u32::MAX, &text) + " 1764187200";
    assert!(name.len() <= 63 && name.is_ascii() && !name.contains('\''), "{name}");
    check(&application::parse(&name, 0).expect("it is ours"));
}

fn check(holder: &Holder) {
    let shown = holder.to_string();
    assert!(!shown.contains(char::is_control) && shown.len() < 8_000, "{shown}");
}

pub(crate) fn token(bytes: &[u8]) {
    token::parse(&String::from_utf8_lossy(bytes));
}

pub(crate) fn password_file(bytes: &[u8]) {
    let found = passfile::find(&String::from_utf8_lossy(bytes), ["db", "5432", "app", "me"]);
    assert_ne!(found.as_deref(), Some(""));
}

/// What methods the login may have, and what the server says. It has its own login only if it may have one.
pub(crate) fn login(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let (methods, said) = text.split_once('\n').unwrap_or((&text, ""));
    let Ok(methods) = Methods::parse(methods) else { return };
    let may_be_trusted = methods.check(Some(0)).is_ok();
    let mut settings = Settings::of_example();
    settings.require_auth = Some(methods);
    let welcome = block_on(async {
        let (mut ours, mut theirs) = tokio::io::duplex(1 << 16);
        theirs.write_all(said.as_bytes()).await?;
        theirs.shutdown().await?;
        let password = settings.password.as_deref();
        Startup { stream: &mut ours, settings: &settings, password, end_point: None }.run().await
    });
    if let Ok(Welcome { messages, .. }) = welcome {
        let at = said.as_bytes().windows(messages.len()).position(|part| part == messages).expect("it was said");
        assert!(at > 0 || may_be_trusted || messages.starts_with(b"E"), "{said:?}");
    }
}

/// A challenge, and what the server says at the end: it does not know the password.
pub(crate) fn scram(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let (challenge, last) = text.split_once('\n').unwrap_or((&text, ""));
    let scram = Scram { user: "", password: "pw", header: "n,,", end_point: b"", nonce: "x".into() };
    if let Ok(answer) = block_on(scram.answer(challenge, Duration::ZERO)) {
        answer.check(last).unwrap_err();
    }
}

pub(crate) fn certificate(bytes: &[u8]) {
    end_point::hash(bytes);
}

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().build().expect("it has no drivers").block_on(future)
}
