//! What a session speaks through: the socket, or TLS over it. It looks at how the server wants the login to be done.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
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
    greeting: Greeting,
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
        Self { stream: Stream::Plain(socket), allowance, greeting: Greeting::default() }
    }

    #[cfg(feature = "postgres-tls")]
    pub(super) async fn encrypted(mut socket: Socket, tls: &Tls, host: &str) -> io::Result<Self> {
        let allowance = socket.limit();
        let stream = Stream::Encrypted(Box::new(handshake::shake_hands(socket, tls, host).await?));
        Ok(Self { stream, allowance, greeting: Greeting::default() })
    }

    #[cfg(not(feature = "postgres-tls"))]
    pub(super) async fn encrypted(_socket: Socket, _tls: &Tls, _host: &str) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(super) fn is_encrypted(&self) -> bool {
        !matches!(self.stream, Stream::Plain(_))
    }

    /// Where the number of the server's process will be once the session is ready.
    pub(super) fn process(&self) -> Arc<OnceLock<i32>> {
        Arc::clone(&self.greeting.process)
    }

    /// Lets the server ask for a login only with one of these methods.
    pub(super) fn demand(&mut self, methods: Methods) {
        self.greeting.methods = Some(methods);
    }
}

/// What a server says until a session is ready: how it wants the login to be done, and which of its processes the session
/// belongs to ("Message Formats" in the manual of PostgreSQL).
#[derive(Default)]
pub(super) struct Greeting {
    pub(super) methods: Option<Methods>,
    process: Arc<OnceLock<i32>>,
    has_begun: bool,
    /// The message that comes: its kind, its length, and the first four bytes of what it says.
    message: Vec<u8>,
    /// How many more bytes of it come.
    rest: usize,
    is_over: bool,
}

impl Greeting {
    const HEADER: usize = 5;

    /// `bytes` are the next ones that were read. The error comes before anybody can answer the message: the last byte of
    /// what is asked for is among them.
    pub(super) fn look_at(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut bytes = bytes.iter();
        while !self.is_over {
            if self.rest > 0 {
                let skipped = bytes.by_ref().take(self.rest).count();
                self.rest -= skipped;
                if self.rest > 0 {
                    break;
                }
            }
            let Some(byte) = bytes.next() else { break };
            self.message.push(*byte);
            if let Some(length) = self.length() {
                let shown = length.min(4);
                if self.message.len() == Self::HEADER + shown {
                    self.rest = length - shown;
                    let message = std::mem::take(&mut self.message);
                    self.read(message[0], &message[Self::HEADER..])?;
                }
            }
        }
        Ok(())
    }

    /// The length of what the message says, once its header is there.
    fn length(&self) -> Option<usize> {
        let &[a, b, c, d] = self.message.get(1..Self::HEADER)? else { return None };
        Some((u32::from_be_bytes([a, b, c, d]) as usize).saturating_sub(4))
    }

    fn read(&mut self, kind: u8, says: &[u8]) -> io::Result<()> {
        let is_first = !std::mem::replace(&mut self.has_begun, true);
        let number = says.first_chunk().map(|&bytes| i32::from_be_bytes(bytes));
        match (kind, number, &self.methods) {
            (b'R', Some(login), Some(methods)) if is_first => methods.check(login),
            (b'E', ..) => Ok(()),
            (_, _, Some(_)) if is_first => {
                Err(io::Error::new(io::ErrorKind::InvalidData, "the server does not begin with a login"))
            }
            (b'K', Some(process), _) => {
                self.is_over = true;
                let _ = self.process.set(process);
                Ok(())
            }
            // It is ready for statements.
            (b'Z', ..) => {
                self.is_over = true;
                Ok(())
            }
            _ => Ok(()),
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
        Poll::Ready(self.greeting.look_at(&buf.filled()[before..]))
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
        let mut greeting = Greeting { methods: Some(Methods::parse(methods).unwrap()), ..Greeting::default() };
        reads.iter().try_for_each(|bytes| greeting.look_at(bytes)).map_err(|error| error.to_string())
    }

    #[test]
    fn a_login_is_seen_however_its_bytes_arrive() {
        let message = b"R\0\0\0\x08\0\0\0\x03";
        for at in 0..message.len() {
            let error = looked_at("scram-sha-256", &[&message[..at], &message[at..]]).unwrap_err();
            assert!(error.contains("cleartext"), "{error}");
        }
        assert_eq!(looked_at("password", &[message, b"S\0\0\0\x05", b"else"]), Ok(()));
        assert_eq!(looked_at("scram-sha-256", &[b"E\0\0\0\x20SFATAL", b"\0"]), Ok(()));
        assert!(looked_at("scram-sha-256", &[b"N\0\0\0\x08\0\0\0\0"]).is_err());
        assert!(looked_at("scram-sha-256", &[b"Z\0\0\0\x05I"]).is_err());
    }

    #[test]
    fn the_process_is_seen_however_its_bytes_arrive() {
        let greeting = b"R\0\0\0\x08\0\0\0\0S\0\0\0\x0fTimeZone\0X\0K\0\0\0\x0c\0\0\x12\x34keysZ\0\0\0\x05I";
        for at in 0..greeting.len() {
            let mut seen = Greeting::default();
            seen.look_at(&greeting[..at]).unwrap();
            seen.look_at(&greeting[at..]).unwrap();
            assert_eq!(seen.process.get(), Some(&0x1234), "{at}");
        }
    }
}
