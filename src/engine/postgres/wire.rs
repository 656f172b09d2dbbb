//! What a session speaks through: the socket, or TLS over it.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio_postgres::config::{SslMode, SslNegotiation};
use tokio_postgres::tls::{ChannelBinding, TlsConnect, TlsStream};
use tokio_postgres::{Client, Config, Connection, Error};

use super::tls::Tls;
#[cfg(feature = "postgres-tls")]
use super::{end_point, handshake};
use crate::engine::server::socket::{Allowance, Socket};

/// The message SSLRequest ("Message Formats" in the manual of PostgreSQL).
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

pub(super) struct Wire {
    stream: Stream,
    /// To be renewed before each question.
    pub(super) allowance: Allowance,
    /// What tokio-postgres has still to hear of the login, which was without it. Until then, what it writes is its own part of
    /// a login, and goes nowhere.
    login: BytesMut,
}

enum Stream {
    Plain(Socket),
    #[cfg(feature = "postgres-tls")]
    Encrypted(Box<tokio_rustls::client::TlsStream<Socket>>),
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
        Self { stream: Stream::Plain(socket), allowance, login: BytesMut::new() }
    }

    #[cfg(feature = "postgres-tls")]
    pub(super) async fn encrypted(mut socket: Socket, tls: &Tls, host: &str) -> io::Result<Self> {
        let allowance = socket.limit();
        let stream = Stream::Encrypted(Box::new(handshake::shake_hands(socket, tls, host).await?));
        Ok(Self { stream, allowance, login: BytesMut::new() })
    }

    #[cfg(not(feature = "postgres-tls"))]
    pub(super) async fn encrypted(_socket: Socket, _tls: &Tls, _host: &str) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(super) fn is_encrypted(&self) -> bool {
        !matches!(self.stream, Stream::Plain(_))
    }

    /// What a login can be bound to, where there is something.
    pub(super) fn end_point(&self) -> Option<Vec<u8>> {
        match &self.stream {
            Stream::Plain(_) => None,
            #[cfg(feature = "postgres-tls")]
            Stream::Encrypted(stream) => end_point::hash(stream.get_ref().1.peer_certificates()?.first()?),
        }
    }

    /// The client for a session in which the server has said this since the login.
    pub(super) async fn client(mut self, login: BytesMut) -> Result<(Client, Connection<Self, Self>), Error> {
        self.login = login;
        // All but the stream is settled.
        let mut config = Config::new();
        config.user("").ssl_mode(SslMode::Require).ssl_negotiation(SslNegotiation::Direct);
        config.connect_raw(self, AsItIs).await
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
        if self.login.is_empty() {
            return forward!(self, poll_read(context, buf));
        }
        let length = self.login.len().min(buf.remaining());
        buf.put_slice(&self.login.split_to(length));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.login.is_empty() {
            true => forward!(self, poll_write(context, buf)),
            false => Poll::Ready(Ok(buf.len())),
        }
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
        ChannelBinding::none()
    }
}

/// What tokio-postgres takes for its TLS: the wire, which is ready.
struct AsItIs;

impl TlsConnect<Wire> for AsItIs {
    type Stream = Wire;
    type Error = Infallible;
    type Future = Ready<Result<Wire, Infallible>>;

    fn connect(self, wire: Wire) -> Self::Future {
        ready(Ok(wire))
    }
}
