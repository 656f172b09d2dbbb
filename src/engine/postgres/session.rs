//! One server session.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_postgres::{CancelToken, Client, SimpleQueryMessage, SimpleQueryRow};

use super::application;
use super::config::{Host, LockNumber, Settings};
use super::connect::{self, Connection, Way, within};
use super::failure::{self, Failure};
use super::sql;
use crate::engine::server::lease::Moment;
use crate::engine::server::socket::Allowance;
use crate::words::mode::Mode;

/// A session of our own at a primary, prepared for locks. When it is dropped, it ends, and the server frees its locks.
#[derive(Debug)]
pub(super) struct Session {
    client: Client,
    moving: JoinHandle<Result<(), tokio_postgres::Error>>,
    way: Way,
    allowance: Allowance,
    /// A random text that only this session has.
    stamp: String,
    application: String,
    /// When the last statement that was answered was sent.
    sent: Moment,
    /// Whether an answer is due.
    is_asked: bool,
    /// Whether `moving` has ended, and its result has been read.
    is_over: bool,
    settings: Settings,
}

/// What a try has found.
#[derive(Debug)]
pub(super) enum Tried {
    Granted(String),
    Busy,
}

impl Session {
    /// A session at the first host that is a primary.
    pub(super) async fn open(settings: &Settings) -> Result<Self, Failure> {
        let mut failures = Vec::new();
        for host in &settings.hosts {
            match Self::at_host(settings, host).await {
                Ok(session) => return Ok(session),
                Err(failure) => failures.push(failure),
            }
        }
        Err(failure::of_all(settings, failures))
    }

    async fn at_host(settings: &Settings, host: &Host) -> Result<Self, Failure> {
        let Connection { client, moving, way, allowance } = connect::to_host(settings, host).await?;
        let mut session = Self {
            client,
            moving,
            way,
            allowance,
            stamp: format!("{:016x}{:016x}", RandomState::new().hash_one(0), RandomState::new().hash_one(1)),
            application: application::name(settings.application_name.as_deref()).await?,
            sent: Moment::now(),
            is_asked: false,
            is_over: false,
            settings: settings.clone(),
        };
        session.prepare().await?;
        Ok(session)
    }

    async fn prepare(&mut self) -> Result<(), Failure> {
        let statement = sql::prepare(&self.stamp, self.settings.ttl, &self.application);
        let limit = self.settings.connect_timeout;
        // The second statement does not wait for the answer to the first.
        let first = within(limit, self.client.simple_query(sql::NO_STATEMENT_TIMEOUT));
        let (first, second) = tokio::join!(first, within(limit, self.client.simple_query(&statement)));
        first?;
        let row = last_row(second?)?;
        if column(&row, 2)?.is_none() {
            let reason = "the server has no idle_session_timeout, so a lock would outlive its holder; use PostgreSQL 14 or newer";
            return Err(Failure::Unsupported(reason.into()));
        }
        match column(&row, 1)? {
            Some("f") => Ok(()),
            _ => Err(Failure::standby()),
        }
    }

    /// Asks for one row, for no longer than `limit`.
    async fn ask(&mut self, statement: &str, limit: Duration) -> Result<SimpleQueryRow, Failure> {
        last_row(self.ask_for_all(statement, limit).await?)
    }

    async fn ask_for_all(&mut self, statement: &str, limit: Duration) -> Result<Vec<SimpleQueryMessage>, Failure> {
        let sent = Moment::now();
        self.is_asked = true;
        self.allowance.renew();
        let answer = match within(limit, self.client.simple_query(statement)).await {
            Err(failure @ Failure::NoAnswer(_)) => return Err(failure),
            Err(Failure::Postgres(error)) if error.is_closed() => {
                // What the server said when it ended the session.
                return Err(self.end().await.map_or(Failure::Postgres(error), Failure::from));
            }
            answer => answer,
        };
        self.is_asked = false;
        let answer = answer?;
        let has_stamp = |row| column(row, 0).is_ok_and(|stamp| stamp == Some(&*self.stamp));
        if answer.iter().any(|message| matches!(message, SimpleQueryMessage::Row(row) if !has_stamp(row))) {
            return Err(Failure::another_session());
        }
        self.sent = sent;
        Ok(answer)
    }

    /// Resolves when the session has ended, with the reason if it is told for the first time.
    async fn end(&mut self) -> Option<tokio_postgres::Error> {
        if self.is_over {
            return None;
        }
        let ended = (&mut self.moving).await;
        self.is_over = true;
        ended.ok()?.err()
    }

    /// Resolves when the session has ended.
    pub(super) async fn ended(&mut self) {
        self.end().await;
    }

    pub(super) fn has_ended(&self) -> bool {
        self.client.is_closed() || self.moving.is_finished()
    }

    pub(super) fn sent(&self) -> Moment {
        self.sent
    }

    pub(super) async fn beat(&mut self, limit: Duration) -> Result<(), Failure> {
        self.ask(&sql::beat(), limit).await.map(drop)
    }

    pub(super) async fn try_lock(&mut self, lock: LockNumber, mode: Mode) -> Result<Tried, Failure> {
        let statement = sql::try_lock(lock, mode, &self.application);
        let row = self.ask(&statement, self.settings.connect_timeout).await?;
        read_try(&row)
    }

    /// Waits for up to [`Settings::slice`].
    pub(super) async fn wait(&mut self, lock: LockNumber, mode: Mode) -> Result<Tried, Failure> {
        let statement = sql::wait(lock, mode, &self.application, self.settings.slice());
        let row = self.ask(&statement, self.settings.connect_timeout).await?;
        read_try(&row)
    }

    /// Whether the session had the lock.
    pub(super) async fn unlock(&mut self, lock: LockNumber, mode: Mode, limit: Duration) -> Result<bool, Failure> {
        let statement = sql::unlock(lock, mode, &self.application);
        Ok(column(&self.ask(&statement, limit).await?, 1)? == Some("t"))
    }

    pub(super) async fn rows(&mut self, statement: &str) -> Result<Vec<SimpleQueryRow>, Failure> {
        let answer = self.ask_for_all(statement, self.settings.connect_timeout).await?;
        let row = |message| if let SimpleQueryMessage::Row(row) = message { Some(row) } else { None };
        Ok(answer.into_iter().filter_map(row).collect())
    }

    /// Makes a request to the server to end the statement that this session is running.
    pub(super) fn canceler(&self) -> Canceler {
        Canceler { way: self.way.clone(), token: self.client.cancel_token(), settings: self.settings.clone() }
    }

    /// Gives up everything that the session may hold, and ends it. A request to cancel may come late and hit a later
    /// statement, so the session is not used again.
    pub(super) async fn give_up(mut self) {
        if self.is_asked {
            // It does not answer.
            return;
        }
        // A late request to cancel can hit only one of these two statements.
        for _ in 0..2 {
            match self.ask(&sql::unlock_all(), self.settings.connect_timeout).await {
                Err(failure) if failure.is_canceled() => {}
                _ => return,
            }
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // The connection closes by itself, but it would wait for the answer that is due.
        if self.is_asked {
            self.moving.abort();
        }
    }
}

/// Ends a statement of another task.
pub(super) struct Canceler {
    way: Way,
    token: CancelToken,
    settings: Settings,
}

impl Canceler {
    pub(super) async fn cancel(self) -> Result<(), Failure> {
        within(self.settings.connect_timeout, self.way.cancel(&self.settings, &self.token)).await
    }
}

fn last_row(answer: Vec<SimpleQueryMessage>) -> Result<SimpleQueryRow, Failure> {
    let row = |message| if let SimpleQueryMessage::Row(row) = message { Some(row) } else { None };
    answer.into_iter().rev().find_map(row).ok_or_else(Failure::no_such_answer)
}

/// The text in a column; `None` for NULL. What a server sends may have fewer columns, and be no text.
pub(super) fn column(row: &SimpleQueryRow, at: usize) -> Result<Option<&str>, Failure> {
    row.try_get(at).map_err(|_| Failure::no_such_answer())
}

pub(super) fn read_try(row: &SimpleQueryRow) -> Result<Tried, Failure> {
    match (column(row, 1)?, column(row, 2)?) {
        (Some("f"), None | Some("")) => Ok(Tried::Busy),
        (Some("f"), Some(grant)) => Ok(Tried::Granted(grant.to_owned())),
        (Some("t"), _) => Err(Failure::standby()),
        _ => Err(Failure::no_such_answer()),
    }
}
