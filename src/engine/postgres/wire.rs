//! What a session speaks through: the socket, or TLS over it. It looks at how the server wants the login to be done.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio_postgres::tls::{ChannelBinding, TlsConnect, TlsStream};

#[cfg(feature = "postgres-tls")]
use super::handshake;
use super::login::Methods;
use super::tls::Tls;
use crate::engine::server::socket::{Allowance, Socket};

/// The message SSLRequest ("Message Formats" in the manual of PostgreSQL).
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

pub(super) struct Wire {
    stream: Stream,
    /// To be renewed before each question.
    pub(super) allowance: Allowance,
    first_message: FirstMessage,
}

enum Stream {
    Plain(Socket),
    #[cfg(feature = "postgres-tls")]
    Encrypted(Box<handshake::Encrypted>),
}

/// Asks the server for TLS. Not one byte more than the answer is read: what follows it is not encrypted.
pub(super) async fn offers_tls(socket: &mut Socket) -> io::Result<bool> {
    socket.write_all(&SSL_REQUEST).await?;
    match socket.read_u8().await? {
        b'S' => Ok(true),
        b'N' => Ok(false),
        // As libpq, this does not show the text of an error that anybody on the way can have sent.
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "the server answers the request for TLS with an error")),
    }
}

impl Wire {
    pub(super) fn plain(mut socket: Socket) -> Self {
        let allowance = socket.limit();
        Self { stream: Stream::Plain(socket), allowance, first_message: FirstMessage::default() }
    }

    #[cfg(feature = "postgres-tls")]
    pub(super) async fn encrypted(mut socket: Socket, tls: &Tls, host: &str) -> io::Result<Self> {
        let allowance = socket.limit();
        let stream = Stream::Encrypted(Box::new(handshake::shake_hands(socket, tls, host).await?));
        Ok(Self { stream, allowance, first_message: FirstMessage::default() })
    }

    #[cfg(not(feature = "postgres-tls"))]
    pub(super) async fn encrypted(_socket: Socket, _tls: &Tls, _host: &str) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(super) fn is_encrypted(&self) -> bool {
        !matches!(self.stream, Stream::Plain(_))
    }

    /// Lets the server ask for a login only with one of these methods.
    pub(super) fn demand(&mut self, methods: Methods) {
        self.first_message.methods = Some(methods);
    }
}

/// The first message of a server. Unless it is an error, it asks for a login, and says how.
#[derive(Default)]
pub(super) struct FirstMessage {
    pub(super) methods: Option<Methods>,
    /// The kind, the length, and what is asked for.
    begin: Vec<u8>,
}

impl FirstMessage {
    const LENGTH: usize = 9;

    /// `bytes` are the next ones that were read. The error comes before anybody can answer the message: the last byte of
    /// what is asked for is among them.
    pub(super) fn look_at(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Some(methods) = &self.methods else { return Ok(()) };
        let missing = Self::LENGTH - self.begin.len();
        self.begin.extend(bytes.iter().take(missing));
        match *self.begin {
            [b'E', ..] => Ok(()),
            [b'R', _, _, _, _, a, b, c, d] => methods.check(i32::from_be_bytes([a, b, c, d])),
            [b'R', ..] | [] => Ok(()),
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "the server does not begin with a login")),
        }
    }
}

/// Calls the same function of whichever stream it is.
macro_rules! forward {
    ($wire:expr, $call:ident($($argument:expr),*)) => {
        match &mut $wire.stream {
            Stream::Plain(stream) => Pin::new(stream).$call($($argument),*),
            #[cfg(feature = "postgres-tls")]
            Stream::Encrypted(stream) => Pin::new(stream).$call($($argument),*),
        }
    };
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(forward!(self, poll_read(context, buf)))?;
        Poll::Ready(self.first_message.look_at(&buf.filled()[before..]))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        forward!(self, poll_write(context, buf))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        forward!(self, poll_flush(context))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        forward!(self, poll_shutdown(context))
    }
}

impl TlsStream for Wire {
    fn channel_binding(&self) -> ChannelBinding {
        match &self.stream {
            Stream::Plain(_) => ChannelBinding::none(),
            #[cfg(feature = "postgres-tls")]
            Stream::Encrypted(stream) => stream.channel_binding(),
        }
    }
}

/// What tokio-postgres takes for its TLS: the wire, which is ready.
pub(super) struct AsItIs;

impl TlsConnect<Wire> for AsItIs {
    type Stream = Wire;
    type Error = Infallible;
    type Future = Ready<Result<Wire, Infallible>>;

    fn connect(self, wire: Wire) -> Self::Future {
        ready(Ok(wire))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looked_at(methods: &str, reads: &[&[u8]]) -> Result<(), String> {
        let mut first = FirstMessage { methods: Some(Methods::parse(methods).unwrap()), ..FirstMessage::default() };
        reads.iter().try_for_each(|bytes| first.look_at(bytes)).map_err(|error| error.to_string())
    }

    #[test]
    fn a_login_is_seen_however_its_bytes_arrive() {
        let message = b"R\0\0\0\x08\0\0\0\x03";
        for at in 0..message.len() {
            let error = looked_at("scram-sha-256", &[&message[..at], &message[at..]]).unwrap_err();
            assert!(error.contains("cleartext"), "{error}");
        }
        assert_eq!(looked_at("password", &[message, b"anything", b"else"]), Ok(()));
        assert_eq!(looked_at("scram-sha-256", &[b"E\0\0\0\x20SFATAL", b"\0"]), Ok(()));
        assert!(looked_at("scram-sha-256", &[b"N\0\0\0\x08"]).is_err());
    }
}
