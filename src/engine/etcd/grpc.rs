//! gRPC over HTTP/2, as far as etcd's API needs it: calls with one answer, and a call with a stream of answers.
//!
//! This follows "gRPC over HTTP2" (PROTOCOL-HTTP2.md of grpc). It is written on `h2` instead of a larger library because a
//! connection must be one that we can close at any moment, and because a user should not have to build a larger library
//! for nine calls.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::marker::PhantomData;
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::{HeaderMap, HeaderValue, Request, StatusCode, Uri};
use percent_encoding::percent_decode_str;
use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::AbortHandle;

use super::failure::{Code, Failure};
use super::greeting::Greeting;
use super::proto::Call;

/// How much may be on its way to us on all streams together. `h2` takes half of it as the room for the small frames that
/// nobody has read yet, and ends a connection that has more of them: so this has to fit to a thousand answers at once.
const WINDOW: u32 = 4 << 20;

/// How much the headers of an answer may take. They are a status with its text.
const LONGEST_HEADERS: u32 = 64 << 10;

/// No part of an answer of etcd is shorter than this on average. So the memory that an answer takes has to do with its
/// length.
const SHORTEST_PART: usize = 8;

/// A connection to one server. Clones use the same connection.
#[derive(Clone)]
pub(super) struct Channel {
    requests: SendRequest<Bytes>,
    connection: Arc<Connection>,
    /// `http://host:port`
    origin: Arc<str>,
    token: Option<HeaderValue>,
}

/// The task that drives the connection. All calls on it fail when the task has ended.
struct Connection(AbortHandle);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Channel {
    /// Begins HTTP/2 on `stream`. `origin` is the URL of the server without a path.
    pub(super) async fn open<S>(stream: S, origin: &str) -> Result<Self, Failure>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let mut builder = h2::client::Builder::new();
        builder.enable_push(false).initial_connection_window_size(WINDOW).max_header_list_size(LONGEST_HEADERS);
        let (requests, connection) =
            builder.handshake(Greeting::new(stream)).await.map_err(|error| Failure::not_sent(into_io(error)))?;
        let driving = tokio::spawn(async move { _ = connection.await });
        let connection = Arc::new(Connection(driving.abort_handle()));
        Ok(Self { requests, connection, origin: origin.into(), token: None })
    }

    /// The same channel, with `token` in each call.
    pub(super) fn with_token(mut self, token: HeaderValue) -> Self {
        self.token = Some(token);
        self
    }

    /// The URL of the server without a path.
    pub(super) fn origin(&self) -> &str {
        &self.origin
    }

    /// Ends the connection for all its users.
    pub(super) fn close(&self) {
        self.connection.0.abort();
    }

    pub(super) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.connection, &other.connection)
    }

    /// A call with one answer.
    pub(super) async fn call<C: Call>(&self, call: &C) -> Result<C::Answer, Failure> {
        let mut stream = self.stream().await?;
        stream.send(call, true)?;
        stream.answer().await
    }

    /// A call with a stream of requests and one of answers.
    pub(super) async fn stream<C: Call>(&self) -> Result<Stream<C>, Failure> {
        let not_sent = |error| Failure::not_sent(into_io(error));
        let mut requests = self.requests.clone().ready().await.map_err(not_sent)?;
        let (response, sender) = requests.send_request(self.head(C::METHOD), false).map_err(not_sent)?;
        let connection = Arc::clone(&self.connection);
        Ok(Stream {
            _connection: connection,
            sender,
            answers: Answers::Awaited(response),
            read: BytesMut::new(),
            longest: 0,
            call: PhantomData,
        })
    }

    fn head(&self, method: &str) -> Request<()> {
        let uri: Uri = format!("{}{method}", self.origin).parse().expect("the origin was a URL when we connected");
        let mut request = Request::post(uri);
        if let Some(headers) = request.headers_mut() {
            headers.insert("content-type", HeaderValue::from_static("application/grpc"));
            headers.insert("te", HeaderValue::from_static("trailers"));
            // A member that has lost its cluster answers at once that it has no leader.
            headers.insert("hasleader", HeaderValue::from_static("true"));
            if let Some(token) = &self.token {
                headers.insert("token", token.clone());
            }
        }
        request.body(()).expect("it has a valid URL")
    }
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Channel").field(&self.origin).finish()
    }
}

/// A call under way. It ends well on a connection that takes no more calls.
pub(super) struct Stream<C> {
    _connection: Arc<Connection>,
    sender: SendStream<Bytes>,
    answers: Answers,
    read: BytesMut,
    /// How many bytes an answer may have.
    longest: usize,
    call: PhantomData<fn(C)>,
}

enum Answers {
    Awaited(ResponseFuture),
    Begun(RecvStream),
}

impl<C: Call> Stream<C> {
    /// Sends a request.
    pub(super) fn send(&mut self, call: &C, is_last: bool) -> Result<(), Failure> {
        self.longest = self.longest.max(call.longest_answer());
        let length = call.encoded_len();
        let mut frame = BytesMut::with_capacity(5 + length);
        // Not compressed.
        frame.put_u8(0);
        frame.put_u32(length.try_into().expect("our requests are short"));
        call.encode(&mut frame).expect("a BytesMut grows");
        self.sender.send_data(frame.freeze(), is_last).map_err(|error| Failure::broken(into_io(error)))
    }

    /// The one answer that is due.
    pub(super) async fn answer(&mut self) -> Result<C::Answer, Failure> {
        self.next().await?.ok_or_else(|| Failure::broken(io::ErrorKind::UnexpectedEof.into()))
    }

    /// The next answer; `None` at the end of the stream. Cancel safe.
    pub(super) async fn next(&mut self) -> Result<Option<C::Answer>, Failure> {
        loop {
            if let Some(message) = take_message(&mut self.read, self.longest)? {
                return Ok(Some(message));
            }
            let body = self.answers().await?;
            match poll_fn(|context| body.poll_data(context)).await {
                Some(data) => {
                    let data = data.map_err(|error| Failure::broken(into_io(error)))?;
                    _ = body.flow_control().release_capacity(data.len());
                    self.read.extend_from_slice(&data);
                }
                None => {
                    let trailers = body.trailers().await.map_err(|error| Failure::broken(into_io(error)))?;
                    status(&trailers.unwrap_or_default())?;
                    return Ok(None);
                }
            }
        }
    }

    async fn answers(&mut self) -> Result<&mut RecvStream, Failure> {
        if let Answers::Awaited(response) = &mut self.answers {
            let response = response.await.map_err(|error| match is_unprocessed(&error) {
                true => Failure::not_sent(into_io(error)),
                false => Failure::broken(into_io(error)),
            })?;
            if response.status() != StatusCode::OK {
                let answer = format!("it answers with HTTP status {}", response.status());
                return Err(Failure::broken(io::Error::other(answer)));
            }
            // A call that fails may have no other headers than these.
            if response.headers().contains_key("grpc-status") {
                status(response.headers())?;
            }
            self.answers = Answers::Begun(response.into_body());
        }
        match &mut self.answers {
            Answers::Begun(body) => Ok(body),
            Answers::Awaited(_) => unreachable!("it has just begun"),
        }
    }
}

/// Takes the first message from what was read; `None` if it is not complete yet. It may have `longest` bytes.
pub(super) fn take_message<A: Message + Default>(read: &mut BytesMut, longest: usize) -> Result<Option<A>, Failure> {
    let malformed = |what: &str| Failure::broken(io::Error::new(io::ErrorKind::InvalidData, what));
    let Some(&[flags, a, b, c, d]) = read.first_chunk() else { return Ok(None) };
    let length = u32::from_be_bytes([a, b, c, d]) as usize;
    if flags != 0 || length > longest {
        return Err(malformed("its answer is compressed, too long, or not gRPC"));
    }
    if read.len() < 5 + length {
        return Ok(None);
    }
    read.advance(5);
    let message = read.split_to(length);
    if parts(&message).is_none_or(|parts| parts > 64 + length / SHORTEST_PART) {
        return Err(malformed("its answer is not the message that this call has in etcd"));
    }
    A::decode(message).map(Some).map_err(|_| malformed("its answer is not the message that this call has in etcd"))
}

/// How many fields a message has, without those inside of them ("Protocol Buffers: Encoding"); `None` if it is none.
fn parts(mut message: &[u8]) -> Option<usize> {
    let mut parts = 0;
    while !message.is_empty() {
        let length = match varint(&mut message)? & 7 {
            0 => varint(&mut message).map(|_| 0)?,
            1 => 8,
            2 => varint(&mut message)?.try_into().ok()?,
            5 => 4,
            _ => return None,
        };
        message = message.get(length..)?;
        parts += 1;
    }
    Some(parts)
}

/// Takes a number from the front of the message: seven bits of it in each byte, the lowest ones first.
fn varint(message: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = message.split_first()?;
        *message = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

/// What the server says at the end of a call.
pub(super) fn status(headers: &HeaderMap) -> Result<(), Failure> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    match text("grpc-status").and_then(|code| code.parse().ok()) {
        Some(0) => Ok(()),
        Some(code) => {
            let message = percent_decode_str(text("grpc-message").unwrap_or_default()).decode_utf8_lossy();
            Err(Failure::refused(Code(code), message.into_owned()))
        }
        None => Err(Failure::broken(io::Error::other("its answer has no gRPC status"))),
    }
}

/// Whether the server has not begun with the request, and says so (RFC 9113, 6.8 and 8.7): the connection takes only a
/// number of requests, or only some at a time.
fn is_unprocessed(error: &h2::Error) -> bool {
    let leaves = error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR);
    error.is_remote() && (leaves || error.reason() == Some(h2::Reason::REFUSED_STREAM))
}

fn into_io(error: h2::Error) -> io::Error {
    match error.is_io() {
        true => error.into_io().expect("just asked"),
        false => io::Error::other(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::etcd::proto::{KeyValue, RangeResponse, ResponseHeader};

    #[test]
    fn the_parts_of_a_message_are_counted() {
        let kvs = vec![KeyValue { key: vec![b'x'; 300], create_revision: i64::MAX, ..KeyValue::default() }; 3];
        let answer = RangeResponse { header: Some(ResponseHeader { revision: -1 }), kvs };
        assert_eq!(parts(&answer.encode_to_vec()), Some(4));
        assert_eq!(parts(&ResponseHeader { revision: -1 }.encode_to_vec()), Some(1));
        assert_eq!(parts(b""), Some(0));
        assert_eq!(parts(b"\x12\x00\x12\x00\x15....\x11........"), Some(4));
        for broken in [&b"\x12"[..], b"\x12\x05", b"\x13", b"\x08", b"\x08\xff", &[0xff; 20], b"\x11.."] {
            assert_eq!(parts(broken), None, "{broken:?}");
        }
    }
}
