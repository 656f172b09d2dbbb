//! Connects to one member of a cluster, or to the first one that answers.

use std::io;
use std::time::Duration;

use http::HeaderValue;
use tokio::net::lookup_host;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::config::{Config, Credentials, Endpoint};
use super::failure::Failure;
use super::grpc::Channel;
use super::proto::AuthenticateRequest;
use super::tls;
use crate::engine::server::said::Said;
use crate::engine::server::socket::Socket;
use crate::words::trace;

/// How long one member may take before the next one is tried beside it, as "Happy Eyeballs" (RFC 8305) does it.
const STAGGER: Duration = Duration::from_millis(250);

/// Connects to the first member that answers. The first try is for the member with the number `first`.
pub(super) async fn to_any(config: &Config, first: usize) -> Result<Channel, Failure> {
    let members = config.endpoints.len();
    let mut remaining = (0..members).map(|number| &config.endpoints[(first + number) % members]);
    let mut tries = JoinSet::new();
    let mut last = None;
    loop {
        let next = remaining.next();
        match next {
            Some(endpoint) => drop(tries.spawn(to(config.clone(), endpoint.clone()))),
            None if tries.is_empty() => return Err(last.expect("a cluster has members")),
            None => {}
        }
        let stagger = if next.is_some() { STAGGER } else { Duration::MAX };
        tokio::select! {
            Some(tried) = tries.join_next() => match tried.unwrap_or_else(|error| Err(Failure::not_sent(error.into()))) {
                Ok(channel) => return Ok(channel),
                Err(failure) if !failure.is_passing() => return Err(failure),
                Err(failure) => last = Some(failure),
            },
            () = sleep(stagger) => {}
        }
    }
}

/// The clusters that have had a password in clear.
static SAID: Said<Vec<Endpoint>> = Said::new();

/// Connects to this member.
pub(super) async fn to(config: Config, endpoint: Endpoint) -> Result<Channel, Failure> {
    let stream = dial(&endpoint).await.map_err(|error| Failure::not_sent(error).at(&endpoint))?;
    let channel = match &config.tls {
        None => Channel::open(stream, &format!("http://{endpoint}")).await,
        Some(tls) => match tls::begin(tls, &endpoint.host, stream).await {
            Ok(stream) => Channel::open(stream, &format!("https://{endpoint}")).await,
            Err(error) => Err(error),
        },
    };
    let channel = channel.map_err(|failure| failure.at(&endpoint))?;
    match &config.credentials {
        None => Ok(channel),
        Some(credentials) => {
            if config.tls.is_none() && SAID.is_new(config.endpoints.clone()) {
                trace::password_in_clear(&config.identity(""));
            }
            log_in(channel, credentials).await.map_err(|failure| failure.at(&endpoint))
        }
    }
}

/// Each address of the host in turn.
async fn dial(endpoint: &Endpoint) -> io::Result<Socket> {
    let mut last = None;
    for address in lookup_host((&*endpoint.host, endpoint.port)).await? {
        match Socket::connect(address).await {
            Ok(socket) => return Ok(socket),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the host has no address")))
}

/// A token lasts about as long as a connection that is in use. When the server does not take it any more, we connect again.
async fn log_in(channel: Channel, credentials: &Credentials) -> Result<Channel, Failure> {
    let request = AuthenticateRequest { name: credentials.user.clone(), password: credentials.password.clone() };
    let token = match channel.call(&request).await {
        Ok(answer) => answer.token,
        Err(failure) if failure.is_without_users() => return Ok(channel),
        Err(failure) => return Err(failure),
    };
    let mut token = HeaderValue::try_from(token).map_err(|error| Failure::broken(io::Error::other(error)))?;
    token.set_sensitive(true);
    Ok(channel.with_token(token))
}
