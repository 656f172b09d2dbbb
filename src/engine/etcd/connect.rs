//! Connects to one member of a cluster, or to the first one that answers.
//!
//! Each address is tried by itself, with a limit of its own for the connection, TLS and the login together. So one that
//! swallows packets, or says nothing, does not keep the others from being tried again.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::HeaderValue;
use tokio::net::lookup_host;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::config::{Config, Credentials, Endpoint};
use super::failure::Failure;
use super::grpc::Channel;
use super::proto::AuthenticateRequest;
use super::tls;
use crate::engine::server::said::Said;
use crate::engine::server::socket::Socket;
use crate::words::trace;

/// How long one member or address may take before the next one is tried beside it, as "Happy Eyeballs" (RFC 8305) does it.
const STAGGER: Duration = Duration::from_millis(250);

/// The pause before a member is tried again.
const PAUSE: Duration = Duration::from_millis(100);

/// Connects to the first member that answers, by `deadline`. The first try is for the member with the number `first`. `last`
/// is what has failed last, until a member answers.
pub(super) async fn to_any(
    config: &Config,
    first: usize,
    last: &Arc<Mutex<Option<Failure>>>,
    deadline: Instant,
) -> Result<Channel, Failure> {
    let members = config.endpoints.len();
    let tries = (0..members).map(|number| {
        let member = config.endpoints[(first + number) % members].clone();
        again_and_again(config.clone(), member, Arc::clone(last))
    });
    let connected = timeout_at(deadline, hedge(tries, STAGGER)).await;
    let last = last.lock().unwrap_or_else(PoisonError::into_inner).take();
    connected.unwrap_or_else(|_| Err(last.unwrap_or_else(Failure::no_connection)))
}

/// Connects to the member as soon as it answers. Fails only if no later try can be better, or if it is no member.
async fn again_and_again(
    config: Config,
    member: Endpoint,
    last: Arc<Mutex<Option<Failure>>>,
) -> Result<Channel, Failure> {
    loop {
        match to(config.clone(), member.clone()).await {
            Err(failure) if failure.is_passing() && !failure.is_foreign() => {
                *last.lock().unwrap_or_else(PoisonError::into_inner) = Some(failure);
                sleep(PAUSE).await;
            }
            connected => return connected,
        }
    }
}

/// Connects to this member, at the first of its addresses that answers.
pub(super) async fn to(config: Config, member: Endpoint) -> Result<Channel, Failure> {
    let limit = config.limit / 3;
    let looked_up = timeout(limit, lookup_host((&*member.host, member.port))).await;
    let looked_up = looked_up.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    let addresses = looked_up.map_err(|error| Failure::not_sent(error).at(&member))?;
    let tries = addresses.map(|address| {
        let (config, member) = (config.clone(), member.clone());
        async move {
            let greeted = timeout(limit, greet(&config, &member, address)).await;
            greeted.unwrap_or_else(|_| Err(Failure::no_answer()))
        }
    });
    // A login that is in doubt is none of the request that waits for the connection.
    hedge(tries, STAGGER).await.map_err(|failure| failure.undoubted().at(&member))
}

/// Begins one try after another: the next one when the last one has failed, or has had no answer for `patience`. Then both
/// go on. Takes the first success, or the first failure that no other try can better.
pub(super) async fn hedge<T, F>(tries: impl Iterator<Item = F>, patience: Duration) -> Result<T, Failure>
where
    T: Send + 'static,
    F: Future<Output = Result<T, Failure>> + Send + 'static,
{
    let (mut remaining, mut running) = (tries, JoinSet::new());
    let mut last = None;
    loop {
        let next = remaining.next();
        let patience = if next.is_some() { patience } else { Duration::MAX };
        match next {
            Some(next) => drop(running.spawn(next)),
            None if running.is_empty() => {
                let nowhere = || io::Error::new(io::ErrorKind::NotFound, "the host has no address");
                return Err(last.unwrap_or_else(|| Failure::not_sent(nowhere())));
            }
            None => {}
        }
        tokio::select! {
            Some(tried) = running.join_next() => match tried.unwrap_or_else(|error| Err(Failure::not_sent(error.into()))) {
                Err(failure) if failure.is_passing() => last = Some(failure),
                done => return done,
            },
            () = sleep(patience) => {}
        }
    }
}

/// The clusters that have had a password in clear.
static SAID: Said<Vec<Endpoint>> = Said::new();

async fn greet(config: &Config, member: &Endpoint, address: SocketAddr) -> Result<Channel, Failure> {
    let stream = Socket::connect(address).await.map_err(Failure::not_sent)?;
    let channel = match &config.tls {
        None => Channel::open(stream, &format!("http://{member}")).await?,
        Some(tls) => {
            let stream = tls::begin(tls, &member.host, stream).await?;
            Channel::open(stream, &format!("https://{member}")).await?
        }
    };
    match &config.credentials {
        None => Ok(channel),
        Some(credentials) => {
            if config.tls.is_none() && SAID.is_new(config.endpoints.clone()) {
                trace::password_in_clear(&config.identity(""));
            }
            log_in(channel, credentials).await
        }
    }
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
