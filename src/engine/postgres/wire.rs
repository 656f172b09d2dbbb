//! What a session speaks through: the socket, or TLS over it.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio_postgres::tls::{ChannelBinding, TlsConnect, TlsStream};

#[cfg(feature = "postgres-tls")]
use super::handshake;
use super::tls::Tls;
use crate::engine::server::socket::{Allowance, Socket};

/// The message SSLRequest ("Message Formats" in the manual of PostgreSQL).
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

pub(super) struct Wire {
    stream: Stream,
    /// To be renewed before each question.
    pub(super) allowance: Allowance,
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
        Self { stream: Stream::Plain(socket), allowance }
    }

    #[cfg(feature = "postgres-tls")]
    pub(super) async fn encrypted(mut socket: Socket, tls: &Tls, host: &str) -> io::Result<Self> {
        let allowance = socket.limit();
        let stream = Stream::Encrypted(Box::new(handshake::shake_hands(socket, tls, host).await?));
        Ok(Self { stream, allowance })
    }

    #[cfg(not(feature = "postgres-tls"))]
    pub(super) async fn encrypted(_socket: Socket, _tls: &Tls, _host: &str) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
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
        forward!(self, poll_read(context, buf))
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
