//! One server session.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row, SimpleQueryMessage, SimpleQueryRow, Statement};

use super::application;
use super::config::{Host, LockNumber, Settings};
use super::connect::{self, Address, Bell, Connection, within};
use super::failure::{self, Failure};
use super::queue::{self, Queue};
use super::sql;
use crate::engine::server::lease::Moment;
use crate::engine::server::socket::Allowance;
use crate::words::mode::Mode;

/// A session at a primary. When it is dropped, it ends, and the server frees its locks.
#[derive(Debug)]
pub(super) struct Session {
    client: Client,
    moving: JoinHandle<Result<(), tokio_postgres::Error>>,
    bell: Arc<Bell>,
    allowance: Allowance,
    /// The statements that were asked. With each that the server keeps for this session: its name there.
    prepared: HashMap<&'static str, Option<Statement>>,
    /// Whether this session has got the lock at the turnstile and left, and has not yet woken the next one in the queue.
    is_to_wake: bool,
    /// The number of the server's process, as the login said it.
    process: Option<u32>,
    /// What only this session answers: the number of its process, and a random text once it is prepared.
    who: String,
    application: String,
    /// When the last statement that was answered was sent.
    sent: Moment,
    /// Whether an answer is due.
    is_asked: bool,
    /// Whether `moving` has ended, and its result has been read.
    is_over: bool,
    /// How long an answer may take.
    limit: Duration,
    ttl: Duration,
}

/// Who tries for a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Candidate {
    /// One that has not waited. It gets no lock for which others wait.
    New,
    /// A waiter whose other session stands at the turnstile.
    First,
    /// The session that stands at the turnstile. If it gets the lock, it leaves the turnstile.
    FirstHere,
}

/// What a try has found.
#[derive(Debug)]
pub(super) enum Tried {
    Granted(String),
    Busy,
}

/// What became of a step in a queue.
#[derive(Debug)]
pub(super) enum Advanced {
    /// Also tells whether the lock is free.
    ToTurnstile { is_free: bool },
    /// This place before is taken.
    Behind(i64),
    /// Nobody is before, but somebody looks at the turnstile just now.
    Not,
}

impl Session {
    /// A session at the first host that is a primary, prepared for locks.
    pub(super) async fn open(settings: &Settings) -> Result<Self, Failure> {
        let mut session = Self::connect(settings).await?;
        session.prepare().await?;
        Ok(session)
    }

    /// A session at the first address of the first host that is a primary. Nothing has been changed there.
    pub(super) async fn connect(settings: &Settings) -> Result<Self, Failure> {
        let mut failures = Vec::new();
        for host in &settings.hosts {
            match Self::at_host(settings, host).await {
                Ok(session) => return Ok(session),
                Err(failure) => failures.push(failure),
            }
        }
        Err(failure::of_all(settings, failures))
    }

    /// Each address of the host has the whole time, as in libpq. The failure is that of the last address, or of one that
    /// answers and is unsuitable.
    async fn at_host(settings: &Settings, host: &Host) -> Result<Self, Failure> {
        let mut told = Failure::from(io::Error::new(io::ErrorKind::NotFound, "its name has no address"));
        for address in within(settings.connect_timeout, connect::addresses(host)).await? {
            match Self::at_address(settings, host, address).await {
                Ok(session) => return Ok(session),
                Err(failure) if told.is_unsupported() && !failure.is_unsupported() => {}
                Err(failure) => told = failure,
            }
        }
        Err(told)
    }

    async fn at_address(settings: &Settings, host: &Host, address: Address) -> Result<Self, Failure> {
        let connecting = connect::to_address(settings, host, address);
        let Connection { client, moving, bell, allowance, process } =
            within(settings.connect_timeout, connecting).await?;
        let mut session = Self {
            client,
            moving,
            bell,
            allowance,
            prepared: HashMap::new(),
            is_to_wake: false,
            process,
            who: String::new(),
            application: application::name(settings.application_name.as_deref()).await?,
            sent: Moment::now(),
            is_asked: false,
            is_over: false,
            limit: settings.connect_timeout,
            ttl: settings.ttl,
        };
        session.meet().await?;
        Ok(session)
    }

    /// Looks for the first time.
    async fn meet(&mut self) -> Result<(), Failure> {
        let rows = self.send(&sql::look(), self.limit).await?;
        let first = rows.first().ok_or_else(Failure::no_such_answer)?;
        self.who = column(first, 0)?.unwrap_or_default().to_owned();
        self.check(&rows)?;
        if column(&last(rows)?, 2)?.is_some() {
            return Ok(());
        }
        let reason =
            "the server has no idle_session_timeout, so a lock would outlive its holder; use PostgreSQL 14 or newer";
        Err(Failure::Unsupported(reason.into()))
    }

    /// Fails if this is another server session than before. Changes nothing.
    pub(super) async fn look(&mut self) -> Result<(), Failure> {
        self.rows(&sql::look()).await.map(drop)
    }

    /// Whether this client and no other has the server session: nothing in front of the server has made up a login of
    /// its own.
    pub(super) fn is_direct(&self) -> bool {
        self.process.is_some_and(|process| self.who == process.to_string())
    }

    pub(super) fn is_in_session_of(&self, other: &Self) -> bool {
        self.who == other.who
    }

    /// Makes the session ready for locks. Comes after every proof: a session of a pool that shares them is other
    /// clients' too.
    pub(super) async fn prepare(&mut self) -> Result<(), Failure> {
        let stamp = format!("{:016x}{:016x}", RandomState::new().hash_one(0), RandomState::new().hash_one(1));
        let statement = sql::prepare(&stamp, self.ttl, &self.application);
        let row = self.ask(&statement, self.limit).await?;
        self.who = format!("{} {stamp}", self.who.split(' ').next().unwrap_or_default());
        // A Unix socket has no such timers, and neither has every system.
        let has_no_timer = |refused: &&str| refused.starts_with("tcp_") && refused.ends_with("=0");
        let refused = column(&row, 2)?.unwrap_or_default().split(' ').filter(|refused| !refused.is_empty());
        match refused.filter(|refused| !has_no_timer(refused)).collect::<Vec<_>>()[..] {
            [] => Ok(()),
            ref refused => Err(Failure::Unsupported(format!(
                "the server does not keep the settings of a session, which has {} now; a lock could be free before its \
                 holder knows",
                refused.join(" ")
            ))),
        }
    }

    /// The last row of the answer, which may take no longer than `limit`.
    async fn ask(&mut self, statement: &str, limit: Duration) -> Result<SimpleQueryRow, Failure> {
        last(self.ask_for_all(statement, limit).await?)
    }

    async fn ask_for_all(&mut self, statement: &str, limit: Duration) -> Result<Vec<SimpleQueryRow>, Failure> {
        let sent = Moment::now();
        let rows = self.send(statement, limit).await?;
        self.check(&rows)?;
        self.sent = sent;
        Ok(rows)
    }

    async fn send(&mut self, statement: &str, limit: Duration) -> Result<Vec<SimpleQueryRow>, Failure> {
        self.begin();
        // In a box, like every answer: otherwise each held lock would have the room for all of them.
        let answer = Box::pin(within(limit, self.client.simple_query(statement))).await;
        let row = |message| if let SimpleQueryMessage::Row(row) = message { Some(row) } else { None };
        Ok(self.finish(answer).await?.into_iter().filter_map(row).collect())
    }

    fn begin(&mut self) {
        self.is_asked = true;
        self.allowance.renew();
    }

    async fn finish<T>(&mut self, answer: Result<T, Failure>) -> Result<T, Failure> {
        match answer {
            Err(failure @ Failure::NoAnswer(_)) => Err(failure),
            // What the server said when it ended the session.
            Err(Failure::Postgres(error)) if error.is_closed() => {
                Err(self.end().await.map_or(Failure::Postgres(error), Failure::from))
            }
            answer => {
                self.is_asked = false;
                answer
            }
        }
    }

    /// Whether each row comes from this session, at a primary.
    fn check(&self, rows: &[SimpleQueryRow]) -> Result<(), Failure> {
        for row in rows {
            let is_standby = match column(row, 1)? {
                Some("f") => Some(false),
                Some("t") => Some(true),
                _ => None,
            };
            self.check_one(column(row, 0)?, is_standby)?;
        }
        Ok(())
    }

    fn check_one(&self, who: Option<&str>, is_standby: Option<bool>) -> Result<(), Failure> {
        match (who, is_standby) {
            (who, _) if who != Some(&*self.who) => Err(Failure::another_session()),
            (_, Some(false)) => Ok(()),
            (_, Some(true)) => Err(Failure::standby()),
            (_, None) => Err(Failure::no_such_answer()),
        }
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
    pub(super) async fn ended(&mut self) -> Failure {
        let closed = || io::Error::from(io::ErrorKind::ConnectionReset).into();
        self.end().await.map_or_else(closed, Failure::from)
    }

    /// Whether it is open, and owes no answer.
    pub(super) fn is_usable(&self) -> bool {
        !(self.is_asked || self.client.is_closed() || self.moving.is_finished())
    }

    pub(super) fn sent(&self) -> Moment {
        self.sent
    }

    pub(super) async fn beat(&mut self, limit: Duration) -> Result<(), Failure> {
        self.ask(&sql::beat(), limit).await.map(drop)
    }

    pub(super) async fn try_lock(
        &mut self,
        lock: LockNumber,
        mode: Mode,
        candidate: Candidate,
    ) -> Result<Tried, Failure> {
        let (passes, leaves, shares) =
            (candidate != Candidate::New, candidate == Candidate::FirstHere, mode == Mode::Shared);
        let (turnstile, application) = (lock.queue().turnstile(), self.application.clone());
        let parameters: [&(dyn ToSql + Sync); 7] =
            [&turnstile, &passes, &leaves, &lock.key, &shares, &lock.has_token, &application];
        let row = self.ask_again(&sql::TRY, &TRY_TYPES, &parameters, self.limit).await?;
        let tried = read_try(&row)?;
        self.is_to_wake = candidate == Candidate::FirstHere && matches!(tried, Tried::Granted(_));
        Ok(tried)
    }

    /// Lets the server read the statement of a try before its time comes.
    pub(super) async fn prepare_to_try(&mut self) -> Result<(), Failure> {
        self.read(&sql::TRY, &TRY_TYPES).await
    }

    /// Takes the last place in the queue, if there is one. Also tells whether that which is before is free by now.
    pub(super) async fn enter(&mut self, lock: LockNumber, mode: Mode) -> Result<(Option<i64>, bool), Failure> {
        let row = self.ask(&sql::enter(lock, mode), self.limit).await?;
        Ok((place(&row)?, column(&row, 3)? == Some("t")))
    }

    /// Goes to the turnstile if nobody is before.
    pub(super) async fn advance(&mut self, lock: LockNumber, mode: Mode, from: i64) -> Result<Advanced, Failure> {
        let row = self.ask(&sql::advance(lock, mode, from), self.limit).await?;
        Ok(match (place(&row)?, column(&row, 3)?) {
            (Some(before), _) => Advanced::Behind(before),
            (None, None) => Advanced::Not,
            (None, Some(is_free)) => Advanced::ToTurnstile { is_free: is_free == "t" },
        })
    }

    pub(super) async fn leave(&mut self, queue: Queue, place: i64) -> Result<(), Failure> {
        let ([class, first, last], place) = (queue.bounds(), queue.place(place));
        let (types, limit) = ([Type::OID, Type::OID, Type::OID, Type::INT8], self.limit);
        // Who is the first now looks once in a while too.
        unless_late(self.ask_again(&sql::LEAVE, &types, &[&class, &first, &last, &place], limit).await).map(drop)
    }

    pub(super) fn is_to_wake(&self) -> bool {
        self.is_to_wake
    }

    /// Wakes who is the first in the queue.
    pub(super) async fn wake(&mut self, queue: Queue, limit: Duration) -> Result<(), Failure> {
        self.is_to_wake = false;
        let [class, first, last] = queue.bounds();
        let types = [Type::OID, Type::OID, Type::OID];
        let woken = self.ask_again(&sql::WAKE, &types, &[&class, &first, &last], limit).await;
        self.is_to_wake = woken.as_ref().is_err_and(Failure::is_canceled);
        match woken {
            // Who is the first looks once in a while too.
            Err(failure) if failure.is_of_statement() && !failure.is_canceled() => Ok(()),
            woken => woken.map(drop),
        }
    }

    /// Which of these locks nobody has, as their places in the list. Beside each number: whether it is to be shared.
    pub(super) async fn free(&mut self, locks: &[(i64, bool)]) -> Result<Vec<usize>, Failure> {
        let (keys, shared): (Vec<i64>, Vec<bool>) = locks.iter().copied().unzip();
        let types = [Type::INT8_ARRAY, Type::BOOL_ARRAY];
        self.read(&sql::FREE, &types).await?;
        let row = self.ask_again(&sql::FREE, &types, &[&keys, &shared], self.limit).await?;
        let free: &str = row.try_get(2).map_err(|_| Failure::no_such_answer())?;
        let place = |at: &str| at.parse::<usize>().ok()?.checked_sub(1).filter(|&place| place < locks.len());
        free.split_ascii_whitespace().map(|at| place(at).ok_or_else(Failure::no_such_answer)).collect()
    }

    /// The only row of the answer to a statement that this session may ask often. The first time, the server reads the text
    /// and forgets it. The second time, it also keeps the text, and the answer does not wait for that.
    async fn ask_again(
        &mut self,
        statement: &'static str,
        types: &[Type],
        parameters: &[&(dyn ToSql + Sync)],
        limit: Duration,
    ) -> Result<Row, Failure> {
        let sent = Moment::now();
        self.begin();
        let is_again = self.prepared.contains_key(statement);
        let prepared = self.prepared.entry(statement).or_default();
        let answer = Box::pin(within(limit, async {
            if let Some(prepared) = prepared {
                return self.client.query_one(prepared, parameters).await;
            }
            let typed: Vec<_> = parameters.iter().copied().zip(types.iter().cloned()).collect();
            let row = self.client.query_typed_one(statement, &typed);
            if !is_again {
                return row.await;
            }
            let (row, keeps) = tokio::join!(row, self.client.prepare_typed(statement, types));
            // Without it, the next time is as this one.
            *prepared = keeps.ok();
            row
        }));
        let answer = answer.await;
        let row = self.finish(answer).await?;
        let no_such_answer = |_| Failure::no_such_answer();
        self.check_one(row.try_get(0).map_err(no_such_answer)?, row.try_get(1).map_err(no_such_answer)?)?;
        self.sent = sent;
        Ok(row)
    }

    /// Lets the server read a statement and keep it, if it has not yet.
    async fn read(&mut self, statement: &'static str, types: &[Type]) -> Result<(), Failure> {
        if let Some(Some(_)) = self.prepared.get(statement) {
            return Ok(());
        }
        self.begin();
        let answer = Box::pin(within(self.limit, self.client.prepare_typed(statement, types))).await;
        let kept = self.finish(answer).await?;
        self.prepared.insert(statement, Some(kept));
        Ok(())
    }

    /// From now on, the bell rings when somebody wakes this session.
    pub(super) async fn listen(&mut self) -> Result<Arc<Bell>, Failure> {
        let process = self.who.split(' ').next().and_then(|process| process.parse().ok());
        let process = process.ok_or_else(Failure::no_such_answer)?;
        if self.bell.set_process(process) {
            self.ask(&sql::listen(process), self.limit).await?;
        }
        Ok(Arc::clone(&self.bell))
    }

    /// Whether the session had the lock. Wakes who is the first in the queue.
    pub(super) async fn unlock(&mut self, lock: LockNumber, mode: Mode, limit: Duration) -> Result<bool, Failure> {
        let ([class, first, last], turnstile) = (lock.queue().bounds(), lock.queue().turnstile());
        let (wakes, shares, application) = (self.is_to_wake, mode == Mode::Shared, self.application.clone());
        let types = [Type::OID, Type::OID, Type::OID, Type::INT8, Type::BOOL, Type::INT8, Type::BOOL, Type::TEXT];
        let parameters: [&(dyn ToSql + Sync); 8] =
            [&class, &first, &last, &turnstile, &wakes, &lock.key, &shares, &application];
        let row = match self.ask_again(&sql::UNLOCK, &types, &parameters, limit).await {
            // Nobody can be woken. This session has nothing else.
            Err(failure) if failure.is_of_statement() && !failure.is_canceled() => {
                self.ask(&sql::unlock_all(), limit).await?;
                None
            }
            row => Some(row?),
        };
        self.is_to_wake = false;
        row.map_or(Ok(true), |row| row.try_get(2).map_err(|_| Failure::no_such_answer()))
    }

    /// Releases the lock, and ends the session.
    pub(super) async fn give_back(mut self, lock: LockNumber, mode: Mode) {
        let _ = self.unlock(lock, mode, self.limit).await;
    }

    /// The third column of the last row; empty for NULL.
    pub(super) async fn value(&mut self, statement: &str) -> Result<String, Failure> {
        let row = self.ask(statement, self.limit).await?;
        Ok(column(&row, 2)?.unwrap_or_default().to_owned())
    }

    pub(super) async fn rows(&mut self, statement: &str) -> Result<Vec<SimpleQueryRow>, Failure> {
        self.ask_for_all(statement, self.limit).await
    }

    /// Gives up everything that the session may hold, and ends it.
    pub(super) async fn give_up(mut self) {
        // A session that owes an answer gives none to this.
        if !self.is_asked {
            let _ = self.ask(&sql::unlock_all(), self.limit).await;
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

/// The types of the parameters of a try.
const TRY_TYPES: [Type; 7] = [Type::INT8, Type::BOOL, Type::BOOL, Type::INT8, Type::BOOL, Type::BOOL, Type::TEXT];

/// `None` if the statement could wake nobody in time. The locks that it has given back are free all the same.
fn unless_late(answer: Result<Row, Failure>) -> Result<Option<Row>, Failure> {
    match answer {
        Err(failure) if failure.is_lock_timeout() => Ok(None),
        answer => answer.map(Some),
    }
}

fn last(mut rows: Vec<SimpleQueryRow>) -> Result<SimpleQueryRow, Failure> {
    rows.pop().ok_or_else(Failure::no_such_answer)
}

/// The text in a column; `None` for NULL. What a server sends may have fewer columns, and be no text.
pub(super) fn column(row: &SimpleQueryRow, at: usize) -> Result<Option<&str>, Failure> {
    row.try_get(at).map_err(|_| Failure::no_such_answer())
}

/// The place of a queue in the third column; `None` for NULL.
fn place(row: &SimpleQueryRow) -> Result<Option<i64>, Failure> {
    let Some(text) = column(row, 2)? else { return Ok(None) };
    let place = text.parse().ok().filter(|place| (0..=queue::LAST).contains(place));
    place.map(Some).ok_or_else(Failure::no_such_answer)
}

fn read_try(row: &Row) -> Result<Tried, Failure> {
    let grant: Option<&str> = row.try_get(2).map_err(|_| Failure::no_such_answer())?;
    Ok(grant.map_or(Tried::Busy, |grant| Tried::Granted(grant.to_owned())))
}
