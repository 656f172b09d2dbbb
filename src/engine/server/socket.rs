//! A connection to a server, of which a forked child keeps no copy.
//!
//! If the child kept its copy, the connection would stay open after the death of the parent. So the server would not
//! free the parent's lock.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
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
    /// `None` if the reader sees to it himself.
    allowance: Option<Allowance>,
}

/// How many bytes may still come. So a server that sends without end does not fill the memory.
#[derive(Debug, Clone, Default)]
pub(crate) struct Allowance(Arc<AtomicUsize>);

impl Allowance {
    /// No answer to our requests comes near this size.
    const BYTES: usize = 16 << 20;

    /// Another answer is due.
    pub(crate) fn renew(&self) {
        self.0.store(Self::BYTES, Ordering::Relaxed);
    }

    /// So many bytes have been read, and nothing of them is kept.
    #[cfg_attr(not(feature = "postgres"), expect(dead_code, reason = "the reader of etcd has its own limit"))]
    pub(crate) fn give_back(&self, bytes: usize) {
        let more = |left: usize| Some(left.saturating_add(bytes).min(Self::BYTES));
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
    }

    fn take(&self, bytes: usize) -> io::Result<()> {
        let taken = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes));
        let endless = |_| io::Error::new(io::ErrorKind::InvalidData, "the server sends more than was asked for");
        taken.map(drop).map_err(endless)
    }
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
        Ok(Self { _not_for_children: NotForChildren::new(&stream), stream: Stream::Tcp(stream), allowance: None })
    }

    #[cfg(unix)]
    pub(crate) async fn connect_unix(path: &std::path::Path) -> io::Result<Self> {
        let stream = UnixStream::connect(path).await?;
        Ok(Self { _not_for_children: NotForChildren::new(&stream), stream: Stream::Unix(stream), allowance: None })
    }

    /// From now on, only what is allowed can be read.
    #[cfg_attr(not(feature = "postgres"), expect(dead_code, reason = "the reader of etcd has its own limit"))]
    pub(crate) fn limit(&mut self) -> Allowance {
        self.allowance.insert(Allowance(Arc::new(AtomicUsize::new(Allowance::BYTES)))).clone()
    }
}

/// Calls the same function of whichever stream it is.
macro_rules! forward {
    ($stream:expr, $call:ident($($argument:expr),*)) => {
        match $stream {
            Stream::Tcp(stream) => Pin::new(stream).$call($($argument),*),
            #[cfg(unix)]
            Stream::Unix(stream) => Pin::new(stream).$call($($argument),*),
        }
    };
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { stream, allowance, .. } = self.get_mut();
        let before = buf.filled().len();
        let read = forward!(stream, poll_read(context, buf));
        let taken = allowance.as_ref().map_or(Ok(()), |allowance| allowance.take(buf.filled().len() - before));
        match taken {
            Ok(()) => read,
            Err(error) => Poll::Ready(Err(error)),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        forward!(&mut self.get_mut().stream, poll_write(context, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        forward!(&mut self.get_mut().stream, poll_flush(context))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        forward!(&mut self.get_mut().stream, poll_shutdown(context))
    }
}
