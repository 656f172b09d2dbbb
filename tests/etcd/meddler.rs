//! A proxy that understands gRPC. It passes calls on to a member, and can change what comes back.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{RecvStream, SendStream, client};
use http::{HeaderMap, Request, Response, Uri};
use tokio::net::{TcpListener, TcpStream};

/// What comes back from a call.
#[derive(Clone)]
pub(crate) enum Answer {
    /// That of the member.
    Passed,
    /// This status, although the member has carried the request out.
    FailedAfter(u32),
    /// This message, and the member hears nothing.
    Message(Bytes),
}

type Rule = Box<dyn FnMut(&str) -> Answer + Send>;

pub(crate) struct Meddler {
    pub(crate) port: u16,
    rule: Arc<Mutex<Rule>>,
}

impl Meddler {
    /// A proxy in front of `host:port`. It runs until the process ends.
    pub(crate) fn before(endpoint: &str) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let rule: Arc<Mutex<Rule>> = Arc::new(Mutex::new(Box::new(|_| Answer::Passed)));
        let (shared, endpoint) = (Arc::clone(&rule), endpoint.to_owned());
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = TcpListener::from_std(listener).unwrap();
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    tokio::spawn(serve(stream, endpoint.clone(), Arc::clone(&shared)));
                }
            });
        });
        Self { port, rule }
    }

    /// From now on, `rule` says what comes back from a call of this method.
    pub(crate) fn answer(&self, rule: impl FnMut(&str) -> Answer + Send + 'static) {
        *self.rule.lock().unwrap() = Box::new(rule);
    }
}

async fn serve(stream: TcpStream, endpoint: String, rule: Arc<Mutex<Rule>>) {
    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
    let Ok(member) = TcpStream::connect(&endpoint).await else { return };
    let Ok((requests, driving)) = client::handshake(member).await else { return };
    let driving = tokio::spawn(driving);
    while let Some(Ok((request, respond))) = connection.accept().await {
        let answer = rule.lock().unwrap()(request.uri().path());
        let requests = requests.clone();
        let endpoint = endpoint.clone();
        tokio::spawn(async move { pass(request, respond, requests, &endpoint, answer).await });
    }
    driving.abort();
}

async fn pass(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    requests: client::SendRequest<Bytes>,
    endpoint: &str,
    answer: Answer,
) -> Option<()> {
    let head = |status: Option<u32>| {
        let mut head = Response::builder().header("content-type", "application/grpc");
        if let Some(status) = status {
            head = head.header("grpc-status", status.to_string());
        }
        head.body(()).unwrap()
    };
    if let Answer::Message(message) = answer {
        let mut sender = respond.send_response(head(None), false).ok()?;
        let mut frame = vec![0];
        frame.extend_from_slice(&u32::try_from(message.len()).unwrap().to_be_bytes());
        sender.send_data(frame.into(), false).ok()?;
        send(&mut sender, message).await?;
        let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), "0".parse().unwrap())]);
        return sender.send_trailers(trailers).ok();
    }
    let (mut parts, body) = request.into_parts();
    parts.uri = format!("http://{endpoint}{}", parts.uri.path()).parse::<Uri>().unwrap();
    let (response, sender) = requests.ready().await.ok()?.send_request(Request::from_parts(parts, ()), false).ok()?;
    tokio::spawn(copy(body, sender));
    let (parts, body) = response.await.ok()?.into_parts();
    if let Answer::FailedAfter(status) = answer {
        respond.send_response(head(Some(status)), true).ok()?;
        return Some(());
    }
    let is_end = body.is_end_stream();
    let sender = respond.send_response(Response::from_parts(parts, ()), is_end).ok()?;
    if !is_end {
        copy(body, sender).await;
    }
    Some(())
}

async fn copy(mut from: RecvStream, mut to: SendStream<Bytes>) -> Option<()> {
    while let Some(data) = from.data().await {
        let data = data.ok()?;
        from.flow_control().release_capacity(data.len()).ok()?;
        to.send_data(data, false).ok()?;
    }
    match from.trailers().await.ok()? {
        Some(trailers) => to.send_trailers(trailers).ok(),
        None => to.send_data(Bytes::new(), true).ok(),
    }
}

/// As fast as it is read.
async fn send(to: &mut SendStream<Bytes>, mut data: Bytes) -> Option<()> {
    while !data.is_empty() {
        to.reserve_capacity(data.len().min(1 << 16));
        let room = std::future::poll_fn(|context| to.poll_capacity(context)).await?.ok()?;
        to.send_data(data.split_to(room.min(data.len())), false).ok()?;
    }
    Some(())
}
