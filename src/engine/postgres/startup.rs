//! How a session begins: the startup message, and the login that the server asks for ("Message Flow" in the manual of
//! PostgreSQL). The errors are those of libpq.
//!
//! tokio-postgres can do that too. But it makes all rounds of SCRAM in one step, and no more than 100,000.

use std::io;

use bytes::BytesMut;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::message::frontend;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::config::Settings;
use super::login::ChannelBinding;
use super::scram::{self, Scram};

/// What the server asks for, or answers, in a login ("Message Formats" in the manual of PostgreSQL).
const OK: u32 = 0;
const CLEARTEXT: u32 = 3;
const MD5: u32 = 5;
const SASL: u32 = 10;
const SASL_CONTINUE: u32 = 11;
const SASL_FINAL: u32 = 12;

/// The longest message of a login, as in libpq. A challenge is copied and taken apart.
const LONGEST: u32 = 2_000;

const SCRAM: &str = "SCRAM-SHA-256";
const BOUND_SCRAM: &str = "SCRAM-SHA-256-PLUS";

/// What a server says of a session that has begun, or why none begins.
#[derive(Debug, Default)]
pub(super) struct Welcome {
    /// Its messages as they are, from the end of the login until it is ready or refuses.
    pub(super) messages: BytesMut,
    /// The number of its process.
    pub(super) process: Option<u32>,
}

/// A session that begins.
pub(super) struct Startup<'a, S> {
    pub(super) stream: &'a mut S,
    pub(super) settings: &'a Settings,
    pub(super) password: Option<&'a str>,
    /// What the login can be bound to.
    pub(super) end_point: Option<Vec<u8>>,
}

struct Message {
    kind: u8,
    content: Vec<u8>,
}

/// Why there is no login.
enum Stop {
    Refused(Message),
    Failed(io::Error),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

impl<'a, S: AsyncRead + AsyncWrite + Unpin> Startup<'a, S> {
    /// That the server refuses is no error here, but its last message.
    pub(super) async fn run(mut self) -> io::Result<Welcome> {
        let mut message = match self.log_in().await {
            Ok(message) | Err(Stop::Refused(message)) => message,
            Err(Stop::Failed(error)) => return Err(error),
        };
        let mut welcome = Welcome::default();
        loop {
            message.write_to(&mut welcome.messages);
            match message.kind {
                b'K' => welcome.process = message.number(),
                b'Z' | b'E' => return Ok(welcome),
                _ => {}
            }
            message = self.read().await?;
        }
    }

    /// The message with which the server completes the login.
    async fn log_in(&mut self) -> Result<Message, Stop> {
        let settings = self.settings;
        let names = [("client_encoding", "UTF8"), ("user", &*settings.user), ("database", &*settings.database)];
        self.write(|buffer| frontend::startup_message(names, buffer)).await?;
        let request = self.answer().await?;
        let method = request.number();
        settings.require_auth.as_ref().map_or(Ok(()), |methods| methods.check(method))?;
        if method != Some(SASL) {
            self.may_be_unbound("channel binding required but not supported by server's authentication request")?;
        }
        match method {
            Some(OK) => return Ok(request),
            Some(CLEARTEXT) => {
                let password = self.password()?;
                self.write(|buffer| frontend::password_message(password.as_bytes(), buffer)).await?;
            }
            Some(MD5) => {
                let salt = *request.data().first_chunk().ok_or_else(unexpected)?;
                let hash = md5_hash(settings.user.as_bytes(), self.password()?.as_bytes(), salt);
                self.write(|buffer| frontend::password_message(hash.as_bytes(), buffer)).await?;
            }
            Some(SASL) => self.log_in_by_scram(request.data()).await?,
            _ => return Err(io::Error::other("the server asks for a login of a kind that is not supported").into()),
        }
        self.expect(OK).await
    }

    async fn log_in_by_scram(&mut self, mechanisms: &[u8]) -> Result<(), Stop> {
        let offers = |name: &str| mechanisms.split(|&byte| byte == 0).any(|offered| offered == name.as_bytes());
        let is_disabled = self.settings.channel_binding == ChannelBinding::Disable;
        let (mechanism, header, end_point) = match self.end_point.take().filter(|_| !is_disabled) {
            Some(end_point) if offers(BOUND_SCRAM) => (BOUND_SCRAM, "p=tls-server-end-point,,", end_point),
            // If the server has offered it, then somebody between us has taken it away, and the server will notice.
            Some(_) => (SCRAM, "y,,", Vec::new()),
            None => (SCRAM, "n,,", Vec::new()),
        };
        if !offers(mechanism) {
            return Err(io::Error::other("none of the server's SASL authentication mechanisms are supported").into());
        }
        if mechanism == SCRAM {
            self.may_be_unbound(match offers(BOUND_SCRAM) {
                true => "channel binding is required, but the server's certificate has no hash to be bound to",
                false => {
                    "channel binding is required, but server did not offer an authentication method that supports \
                     channel binding"
                }
            })?;
        }
        let scram =
            Scram { user: "", password: self.password()?, header, end_point: &end_point, nonce: scram::nonce()? };
        let first = scram.first_message();
        self.write(|buffer| frontend::sasl_initial_response(mechanism, first.as_bytes(), buffer)).await?;
        let challenge = self.expect(SASL_CONTINUE).await?;
        // The rest of the time is for the network.
        let limit = self.settings.connect_timeout / 2;
        let answer = scram.answer(challenge.text()?, limit).await?;
        self.write(|buffer| frontend::sasl_response(answer.message.as_bytes(), buffer)).await?;
        Ok(answer.check(self.expect(SASL_FINAL).await?.text()?)?)
    }

    fn password(&self) -> io::Result<&'a str> {
        const MISSING: &str =
            "password missing; set PGPASSWORD, use a password file, or write user:password@ in the URL";
        self.password.ok_or_else(|| io::Error::new(io::ErrorKind::PermissionDenied, MISSING))
    }

    /// Fails for this reason if the login must be bound to the certificate.
    fn may_be_unbound(&self, reason: &str) -> io::Result<()> {
        match self.settings.channel_binding {
            ChannelBinding::Require => Err(io::Error::new(io::ErrorKind::PermissionDenied, reason)),
            _ => Ok(()),
        }
    }

    async fn write(&mut self, message: impl FnOnce(&mut BytesMut) -> io::Result<()>) -> io::Result<()> {
        let mut buffer = BytesMut::new();
        message(&mut buffer)?;
        self.stream.write_all(&buffer).await?;
        self.stream.flush().await
    }

    async fn expect(&mut self, number: u32) -> Result<Message, Stop> {
        let message = self.answer().await?;
        if message.number() == Some(number) { Ok(message) } else { Err(unexpected().into()) }
    }

    /// The server's next message of the login.
    async fn answer(&mut self) -> Result<Message, Stop> {
        let message = self.read().await?;
        match message.kind {
            b'R' => Ok(message),
            b'E' => Err(Stop::Refused(message)),
            _ => Err(unexpected().into()),
        }
    }

    /// Not one byte more is read: what follows is for tokio-postgres.
    async fn read(&mut self) -> io::Result<Message> {
        let ends =
            || io::Error::new(io::ErrorKind::UnexpectedEof, "the server ended the connection before it was ready");
        let is_end = |error: io::Error| if error.kind() == io::ErrorKind::UnexpectedEof { ends() } else { error };
        let kind = self.stream.read_u8().await.map_err(is_end)?;
        let length = self.stream.read_u32().await.map_err(is_end)?;
        if kind == b'R' && length > LONGEST {
            return Err(unexpected());
        }
        let length = length.checked_sub(4).ok_or_else(unexpected)?;
        let mut content = Vec::new();
        let mut rest = (&mut *self.stream).take(length.into());
        rest.read_to_end(&mut content).await?;
        if rest.limit() == 0 { Ok(Message { kind, content }) } else { Err(ends()) }
    }
}

impl Message {
    /// What the messages of a login and BackendKeyData begin with.
    fn number(&self) -> Option<u32> {
        self.content.first_chunk().map(|&number| u32::from_be_bytes(number))
    }

    /// What follows the number.
    fn data(&self) -> &[u8] {
        self.content.get(4..).unwrap_or_default()
    }

    fn text(&self) -> io::Result<&str> {
        std::str::from_utf8(self.data()).map_err(|_| unexpected())
    }

    fn write_to(&self, buffer: &mut BytesMut) {
        let length = u32::try_from(self.content.len() + 4).expect("it was read with this length");
        buffer.extend_from_slice(&[self.kind]);
        buffer.extend_from_slice(&length.to_be_bytes());
        buffer.extend_from_slice(&self.content);
    }
}

fn unexpected() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the server's message is none of a login")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::postgres::login::Methods;

    /// What comes of it when the server says this, and what is left of it.
    async fn started(require_auth: &str, server: &[u8]) -> (Result<Welcome, String>, Vec<u8>) {
        let (mut ours, mut theirs) = tokio::io::duplex(1 << 10);
        theirs.write_all(server).await.unwrap();
        theirs.shutdown().await.unwrap();
        let require_auth = Some(Methods::parse(require_auth).unwrap());
        let settings = Settings { require_auth, ..Settings::of_example() };
        let (stream, password) = (&mut ours, settings.password.as_deref());
        let startup = Startup { stream, settings: &settings, password, end_point: None };
        let welcome = startup.run().await.map_err(|error| error.to_string());
        let mut rest = Vec::new();
        ours.read_to_end(&mut rest).await.unwrap();
        (welcome, rest)
    }

    #[tokio::test]
    async fn what_follows_the_login_is_kept_and_what_follows_the_welcome_is_not_read() {
        let welcome = b"R\0\0\0\x08\0\0\0\0S\0\0\0\x0fTimeZone\0X\0K\0\0\0\x0c\0\0\x12\x34keysZ\0\0\0\x05I";
        for request in [&b""[..], b"R\0\0\0\x08\0\0\0\x03", b"R\0\0\0\x0c\0\0\0\x05salt"] {
            let (started, rest) = started("!gss", &[request, welcome, b"N\0\0\0\x05\0"].concat()).await;
            let started = started.unwrap();
            assert_eq!((&*started.messages, started.process), (&welcome[..], Some(0x1234)));
            assert_eq!(rest, b"N\0\0\0\x05\0");
        }
    }

    #[tokio::test]
    async fn a_refusal_is_passed_on_as_it_is() {
        let refusal = b"E\0\0\0\x0dSFATAL\0\0\0";
        for login in [&b""[..], b"R\0\0\0\x08\0\0\0\0"] {
            let messages = [login, refusal].concat();
            assert_eq!(*started("!gss", &messages).await.0.unwrap().messages, messages);
        }
        let refused = [b"R\0\0\0\x08\0\0\0\x03", &refusal[..]].concat();
        assert_eq!(*started("password", &refused).await.0.unwrap().messages, refusal[..]);
    }

    #[tokio::test]
    async fn what_is_no_login_is_an_error() {
        for (server, reason) in [
            (&b""[..], "ended the connection"),
            (b"R\0\0\0\x0c\0\0\0\x05sal", "ended the connection"),
            (b"R\0\0\0\x0b\0\0\0\x05sal", "none of a login"),
            (b"R\0\0\0\x03", "none of a login"),
            (b"R\0\0\x07\xd1", "none of a login"),
            (b"R\0\0\0\x04", "unknown authentication type"),
            (b"R\0\0\0\x08\0\0\0\x02", "unknown authentication type"),
            (b"R\0\0\0\x08\0\0\0\x07", "GSSAPI"),
            (b"R\0\0\0\x08\0\0\0\x09", "not supported"),
            (b"R\0\0\0\x0f\0\0\0\x0aOTHER\0\0", "none of the server's SASL"),
            (b"R\0\0\0\x08\0\0\0\x03R\0\0\0\x08\0\0\0\x03", "none of a login"),
            (b"N\0\0\0\x08\0\0\0\0", "none of a login"),
            (b"Z\0\0\0\x05I", "none of a login"),
        ] {
            let error = started("!gss", server).await.0.unwrap_err();
            assert!(error.contains(reason) && !error.contains("pw"), "{server:?}: {error}");
        }
    }
}
