//! What a server says first. If it certainly speaks another protocol, the connection fails at once, and not when the time is
//! up.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What the error of such a connection says.
pub(super) const NOT_HTTP2: &str = "the server does not speak HTTP/2";

/// The byte of a frame that is its type, and the type of a server's first frame (RFC 9113, 3.4, 4.1 and 6.5).
const TYPE: usize = 3;
const SETTINGS: u8 = 4;
/// What a server may say instead if it ends the connection at once, as `rejectConn` of Go does.
const GOAWAY: u8 = 7;

/// A connection that fails if its first frame is not the one with which a server of HTTP/2 begins.
pub(super) struct Greeting<S> {
    stream: S,
    /// How many bytes have come.
    read: usize,
}

impl<S> Greeting<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, read: 0 }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Greeting<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        let come = &buffer.filled()[before..];
        let kind = TYPE.checked_sub(self.read).and_then(|at| come.get(at));
        self.read += come.len();
        Poll::Ready(match kind {
            Some(&kind) if ![SETTINGS, GOAWAY].contains(&kind) => {
                Err(io::Error::new(io::ErrorKind::InvalidData, NOT_HTTP2))
            }
            _ => Ok(()),
        })
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Greeting<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
