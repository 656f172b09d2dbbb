//! A connection to a server, of which a forked child keeps no copy.
//!
//! If the child kept its copy, the connection would stay open after the death of the parent. So the server would not
//! free the parent's lock.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
#[cfg(unix)]
use tokio::net::UnixStream;

use crate::sys::NotForChildren;

#[derive(Debug)]
pub(crate) struct Socket {
    // In this order: a number that is listed must not be another file's.
    _not_for_children: NotForChildren,
    stream: Stream,
}

#[derive(Debug)]
enum Stream {
    Tcp(TcpStream),
    #[cfg(unix)]
    Unix(UnixStream),
}

impl Socket {
    pub(crate) async fn connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { _not_for_children: NotForChildren::new(&stream), stream: Stream::Tcp(stream) })
    }

    #[cfg(unix)]
    pub(crate) async fn connect_unix(path: &std::path::Path) -> io::Result<Self> {
        let stream = UnixStream::connect(path).await?;
        Ok(Self { _not_for_children: NotForChildren::new(&stream), stream: Stream::Unix(stream) })
    }
}

/// Calls the same function of whichever stream it is.
macro_rules! forward {
    ($socket:expr, $call:ident($($argument:expr),*)) => {
        match &mut $socket.get_mut().stream {
            Stream::Tcp(stream) => Pin::new(stream).$call($($argument),*),
            #[cfg(unix)]
            Stream::Unix(stream) => Pin::new(stream).$call($($argument),*),
        }
    };
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        forward!(self, poll_read(context, buf))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        forward!(self, poll_write(context, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        forward!(self, poll_flush(context))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        forward!(self, poll_shutdown(context))
    }
}
