//! What a session speaks through: the socket, or TLS over it.

use std::convert::Infallible;
use std::future::Ready;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

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
    /// What tokio-postgres has still to hear of the login, which was without it. Until then, what it writes is its own
    /// part of a login, and goes nowhere.
    login: BytesMut,
    messages: Messages,
}

/// Where the reading is in the messages of a session. Settings and notices are dropped: nobody reads them, and
/// tokio-postgres would keep each setting for as long as the session is open.
#[derive(Default)]
struct Messages {
    kind: u8,
    /// How many bytes of its kind and its length have come.
    head: u8,
    /// How many bytes of its content have still to come. Until its head is there, the part of its length that has come.
    rest: u32,
}

impl Messages {
    const DROPPED: [u8; 2] = *b"SN";
    const HEAD: u8 = 5;

    /// Moves what is not dropped to the front, and returns its length.
    fn filter(&mut self, bytes: &mut [u8]) -> usize {
        let mut kept = 0;
        for at in 0..bytes.len() {
            let byte = bytes[at];
            match self.head {
                0 => *self = Self { kind: byte, head: 1, rest: 0 },
                Self::HEAD => self.rest -= 1,
                _ => {
                    (self.head, self.rest) = (self.head + 1, self.rest << 8 | u32::from(byte));
                    if self.head == Self::HEAD {
                        // The length counts itself. What is shorter is an error, which tokio-postgres tells.
                        self.rest = self.rest.saturating_sub(4);
                    }
                }
            }
            if self.head == Self::HEAD && self.rest == 0 {
                self.head = 0;
            }
            if !Self::DROPPED.contains(&self.kind) {
                bytes[kept] = byte;
                kept += 1;
            }
        }
        kept
    }
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
        Self { stream: Stream::Plain(socket), allowance, login: BytesMut::new(), messages: Messages::default() }
    }

    #[cfg(feature = "postgres-tls")]
    pub(super) async fn encrypted(mut socket: Socket, tls: &Tls, host: &str) -> io::Result<Self> {
        let allowance = socket.limit();
        let stream = Stream::Encrypted(Box::new(handshake::shake_hands(socket, tls, host).await?));
        Ok(Self { stream, allowance, login: BytesMut::new(), messages: Messages::default() })
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
        while self.login.is_empty() {
            let before = buf.filled().len();
            ready!(forward!(self, poll_read(context, buf)))?;
            let read = &mut buf.filled_mut()[before..];
            let (length, kept) = (read.len(), self.messages.filter(read));
            buf.set_filled(before + kept);
            // Nothing is the end, unless it was dropped.
            if kept > 0 || length == 0 {
                return Poll::Ready(Ok(()));
            }
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
        std::future::ready(Ok(wire))
    }
}

#[cfg(test)]
mod tests {
    use super::Messages;

    #[test]
    fn settings_and_notices_are_dropped_in_whatever_pieces_they_come() {
        let row = b"D\0\0\x01\x2c".iter().copied().chain([b'S'; 0x128]).collect::<Vec<u8>>();
        let said =
            [&row[..], b"S\0\0\0\x08a\0b\0N\0\0\0\x05\0S\0\0\0\x04", b"1\0\0\0\x04Z\0\0\0\x05I", &row[..9]].concat();
        let heard = [&row[..], b"1\0\0\0\x04Z\0\0\0\x05I", &row[..9]].concat();
        for size in 1..said.len() {
            let (mut messages, mut said, mut kept) = (Messages::default(), said.clone(), Vec::new());
            for piece in said.chunks_mut(size) {
                let length = messages.filter(piece);
                kept.extend_from_slice(&piece[..length]);
            }
            assert_eq!(kept, heard, "{size}");
        }
    }
}
