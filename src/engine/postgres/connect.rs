//! Connects to a host: its addresses in their order, TLS, and the password.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_postgres::{AsyncMessage, Client};

use super::config::{Host, Settings};
use super::environment::variable;
use super::failure::Failure;
use super::login::ChannelBinding;
use super::passfile;
use super::startup::{Startup, Welcome};
use super::wire::{self, Wire};
use crate::engine::server::socket::{Allowance, Socket};
use crate::engine::server::steps;

/// An open connection. A task of its own moves the bytes, and ends with the reason when the connection ends.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) client: Client,
    pub(super) moving: JoinHandle<Result<(), tokio_postgres::Error>>,
    pub(super) bell: Arc<Bell>,
    /// To be renewed before each question.
    pub(super) allowance: Allowance,
    /// The number of the server's process, as the login said it.
    pub(super) process: Option<u32>,
}

/// Rings when another session wakes this one. Anybody in the database can ring it.
#[derive(Debug, Default)]
pub(super) struct Bell {
    /// The number of the server's process, which a notification for this session has as its payload.
    process: OnceLock<String>,
    rung: Notify,
}

impl Bell {
    /// Whether it is set for the first time.
    pub(super) fn set_process(&self, process: u32) -> bool {
        self.process.set(process.to_string()).is_ok()
    }

    fn hear(&self, payload: &str) {
        if self.process.get().is_some_and(|process| process == payload) {
            self.rung.notify_one();
        }
    }

    /// Resolves when the bell has rung since this last resolved. Cancel safe.
    pub(super) async fn rung(&self) {
        self.rung.notified().await;
    }
}

/// How a connection is made.
#[derive(Debug)]
struct Way {
    address: Address,
    /// The name of the host that the certificate is for; `None` without TLS.
    tls_host: Option<String>,
}

#[derive(Debug, Clone)]
pub(super) enum Address {
    Tcp(SocketAddr),
    #[cfg(unix)]
    Unix(std::path::PathBuf),
}

impl Address {
    async fn connect(&self) -> io::Result<Socket> {
        match self {
            Self::Tcp(address) => Socket::connect(*address).await,
            #[cfg(unix)]
            Self::Unix(path) => Socket::connect_unix(path).await,
        }
    }

    /// What all logins at this server have in common.
    fn server(&self) -> String {
        format!("{self:?}")
    }

    /// Whether this is a Unix socket. There is no TLS there, as in libpq.
    fn is_local(&self) -> bool {
        !matches!(self, Self::Tcp(_))
    }
}

/// Moves the bytes of a connection until it ends. What else the server notes beside its answers is dropped: as a future, the
/// connection would log it as it is.
pub(super) async fn keep_moving<S, T>(
    mut connection: tokio_postgres::Connection<S, T>,
    bell: Arc<Bell>,
    allowance: Allowance,
) -> Result<(), tokio_postgres::Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
    T: AsyncRead + AsyncWrite + Unpin,
{
    while let Some(message) = poll_fn(|context| connection.poll_message(context)).await {
        if let AsyncMessage::Notification(notification) = message? {
            // A message has its kind, its length, the number of a process and two texts that end with a zero.
            allowance.give_back(11 + notification.channel().len() + notification.payload().len());
            bell.hear(notification.payload());
        }
    }
    Ok(())
}

/// Waits for no more than `limit`.
pub(super) async fn within<T, E: Into<Failure>>(
    limit: Duration,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, Failure> {
    match tokio::time::timeout(limit, work).await {
        Ok(done) => done.map_err(Into::into),
        Err(_) => Err(Failure::NoAnswer(limit)),
    }
}

#[cfg(unix)]
pub(super) async fn addresses(host: &Host) -> io::Result<Vec<Address>> {
    match host.is_directory() {
        true => Ok(vec![Address::Unix(std::path::Path::new(&host.name).join(format!(".s.PGSQL.{}", host.port)))]),
        false => tcp_addresses(host).await,
    }
}

#[cfg(not(unix))]
pub(super) async fn addresses(host: &Host) -> io::Result<Vec<Address>> {
    tcp_addresses(host).await
}

async fn tcp_addresses(host: &Host) -> io::Result<Vec<Address>> {
    Ok(tokio::net::lookup_host((&*host.name, host.port)).await?.map(Address::Tcp).collect())
}

/// A connection to one address of a host.
pub(super) async fn to_address(settings: &Settings, host: &Host, address: Address) -> Result<Connection, Failure> {
    let password = match &settings.password {
        Some(password) => Some(password.clone()),
        None => match passfile::path(&variable) {
            Some(path) => passfile::look_up(path, host, &settings.database, &settings.user).await?,
            None => None,
        },
    };
    let wants_tls = cfg!(feature = "postgres-tls") && !address.is_local() && settings.tls.may_be_used();
    let mut way = Way { address, tls_host: wants_tls.then(|| host.name.clone()) };
    match way.open(settings, password.clone()).await {
        // As libpq with prefer: perhaps the server wants this client without TLS.
        Err(failure) if way.is_encrypted() && !settings.tls.is_demanded() && failure.is_for_other_rules() => {
            way.tls_host = None;
            way.open(settings, password).await
        }
        opened => opened,
    }
}

impl Way {
    fn is_encrypted(&self) -> bool {
        self.tls_host.is_some()
    }

    async fn open(&mut self, settings: &Settings, password: Option<String>) -> Result<Connection, Failure> {
        let mut wire = self.wire(settings).await?;
        if settings.channel_binding == ChannelBinding::Require && !wire.is_encrypted() {
            return Err(io::Error::other("channel binding required, but SSL not in use").into());
        }
        let (allowance, settings) = (wire.allowance.clone(), settings.clone());
        let login = async move {
            let (end_point, password) = (wire.end_point(), password.as_deref());
            let startup = Startup { stream: &mut wire, settings: &settings, password, end_point };
            let Welcome { messages, process } = startup.run().await?;
            Ok::<_, Failure>((wire.client(messages).await?, process))
        };
        let ((client, connection), process) = steps::run(self.address.server(), login).await??;
        let bell = Arc::<Bell>::default();
        let moving = tokio::spawn(keep_moving(connection, Arc::clone(&bell), allowance.clone()));
        Ok(Connection { client, moving, bell, allowance, process })
    }

    /// Connects. If TLS is not demanded and does not come about, this is a way without TLS from then on.
    async fn wire(&mut self, settings: &Settings) -> io::Result<Wire> {
        let is_demanded = settings.tls.is_demanded();
        let mut socket = self.address.connect().await?;
        let Some(host) = &self.tls_host else { return Ok(Wire::plain(socket)) };
        if wire::offers_tls(&mut socket).await? {
            let (tls, host) = (settings.tls.clone(), host.clone());
            let handshake = async move { Wire::encrypted(socket, &tls, &host).await };
            match steps::run(self.address.server(), handshake).await? {
                Err(_) if !is_demanded => socket = self.address.connect().await?,
                encrypted => return encrypted,
            }
        } else if is_demanded {
            return Err(io::Error::other(
                "the server has no TLS, but TLS is required; turn it on there, or see sslmode",
            ));
        }
        self.tls_host = None;
        Ok(Wire::plain(socket))
    }
}

impl Failure {
    /// Whether the server has other rules for who may connect without TLS.
    fn is_for_other_rules(&self) -> bool {
        self.sql_state() == Some("28000")
    }
}
