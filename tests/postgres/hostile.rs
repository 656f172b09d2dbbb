//! Servers that answer what no PostgreSQL answers. They cost nobody else a lock.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use tokio::time::timeout;
use tokio_lockfile::{LockError, LockFile};

use crate::server::Server;
use crate::support::{HANG, take};

type Row = Vec<Option<Vec<u8>>>;

/// Changes the answer to a statement.
type Twist = Box<dyn Fn(&str, Row) -> Row + Send>;

/// Speaks the protocol of PostgreSQL (its manual: "Frontend/Backend Protocol"), and has locks, until it is told not to.
struct Fake {
    port: u16,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    /// How many rounds of SCRAM-SHA-256 it asks for; 0 for no password.
    rounds: u32,
    /// Which connection has which lock.
    locks: Mutex<HashMap<String, u16>>,
    twist: Mutex<Option<Twist>>,
}

impl Fake {
    fn start(rounds: u32) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(State { rounds, ..State::default() });
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let state = Arc::clone(&shared);
                std::thread::spawn(move || Connection { stream: stream.unwrap(), state }.serve());
            }
        });
        Self { port, state }
    }

    /// Two locks with other parameters are at two servers for the library, so each of them is proven.
    fn lock(&self, name: &str, ttl: &str) -> LockFile {
        let url = format!("postgres://u:pw@127.0.0.1:{}/db?lock={name}&sslmode=disable&ttl={ttl}", self.port);
        LockFile::open(&url).unwrap()
    }

    fn twist(&self, twist: impl Fn(&str, Row) -> Row + Send + 'static) {
        *self.state.twist.lock().unwrap() = Some(Box::new(twist));
    }

    /// Answers as it should again, with all locks free.
    fn behave(&self) {
        *self.state.twist.lock().unwrap() = None;
        self.state.locks.lock().unwrap().clear();
    }
}

/// An array of bigint with 2,147,483,647 elements, of which none follows.
const HUGE_ARRAY: &[u8] = b"\0\0\0\x01\0\0\0\0\0\0\0\x14\x7f\xff\xff\xff\0\0\0\x01";

/// What these statements have in their texts, and no other one.
const UNLOCK: &str = "AS unlocked";
const TRY: &str = "THEN NULL WHEN";
const WAKE: &str = "AS first WHERE";
const FREE: &str = "WITH ORDINALITY";

const TEXT: u32 = 25;
const BOOL: u32 = 16;
const ARRAY: u32 = 1016;

/// The types of the columns of a statement that has parameters.
fn types_of(statement: &str) -> &'static [u32] {
    match statement.contains(UNLOCK) {
        true => &[TEXT, BOOL, BOOL, TEXT, TEXT],
        false if statement.contains(FREE) => &[TEXT, BOOL, ARRAY],
        false => &[TEXT, BOOL, TEXT],
    }
}

/// As the protocol has it in the binary format. What is no value of the type stays.
fn binary(value: Vec<u8>, kind: u32) -> Vec<u8> {
    match (&value[..], kind) {
        (b"t", BOOL) => vec![1],
        (b"f", BOOL) => vec![0],
        _ => value,
    }
}

/// The statement with its parameters in their places. `rest`: what a message Bind has after its names.
fn with_parameters(statement: &str, rest: &[u8]) -> String {
    let number = |at: usize| usize::from(u16::from_be_bytes([rest[at], rest[at + 1]]));
    let count = number(0);
    let mut at = 4 + 2 * count;
    let mut values = Vec::new();
    for _ in 0..count {
        let length = u32::from_be_bytes(rest[at..at + 4].try_into().unwrap()) as usize;
        let value = &rest[at + 4..at + 4 + length];
        values.push(match length {
            1 => (value[0] == 1).to_string(),
            8 => i64::from_be_bytes(value.try_into().unwrap()).to_string(),
            _ => String::from_utf8_lossy(value).into_owned(),
        });
        at += 4 + length;
    }
    let place = |text: String, (at, value): (usize, &String)| text.replace(&format!("${}", at + 1), value);
    values.iter().enumerate().fold(statement.to_owned(), place)
}

struct Connection {
    stream: TcpStream,
    state: Arc<State>,
}

impl Connection {
    /// Ends with an error when the client goes.
    fn serve(mut self) -> io::Result<()> {
        self.stream.set_nodelay(true)?;
        self.receive(0)?;
        match self.state.rounds {
            0 => self.send(b'R', &0_u32.to_be_bytes())?,
            rounds => return self.ask_for_rounds(rounds),
        }
        self.send(b'K', &[0, 0, self.process().to_be_bytes()[0], self.process().to_be_bytes()[1], 0, 0, 0, 0])?;
        self.send(b'Z', b"I")?;
        let (mut stamp, mut texts, mut asked) = (String::new(), HashMap::new(), String::new());
        loop {
            let (tag, body) = self.receive(1)?;
            match tag[..] {
                [b'Q'] => {
                    let statements = String::from_utf8(body).unwrap();
                    for statement in statements.trim_end_matches('\0').split("; ") {
                        if let Some(row) = self.answer(statement, &mut stamp) {
                            self.describe(&vec![TEXT; row.len()])?;
                            self.send_data(&row)?;
                        }
                        self.send(b'C', b"SELECT 1\0")?;
                    }
                    self.send(b'Z', b"I")?;
                }
                // A name, the text, and the types of the parameters.
                [b'P'] => {
                    let [name, text, types] = body.splitn(3, |&byte| byte == 0).collect::<Vec<_>>()[..] else {
                        panic!()
                    };
                    asked = String::from_utf8(text.to_vec()).unwrap();
                    texts.insert(name.to_vec(), (asked.clone(), types.to_vec()));
                    self.send(b'1', b"")?;
                }
                [b'D'] => {
                    let (text, types) = &texts[body[1..].split(|&byte| byte == 0).next().unwrap()];
                    self.send(b't', types)?;
                    self.describe(types_of(text))?;
                }
                [b'B'] => {
                    let [_, name, rest] = body.splitn(3, |&byte| byte == 0).collect::<Vec<_>>()[..] else { panic!() };
                    asked = with_parameters(&texts[name].0, rest);
                    self.send(b'2', b"")?;
                }
                [b'E'] => {
                    let row = self.answer(&asked, &mut stamp).unwrap();
                    if row.is_empty() {
                        // No answer, and never one again.
                        loop {
                            self.receive(1)?;
                        }
                    }
                    let row: Row = row
                        .into_iter()
                        .zip(types_of(&asked))
                        .map(|(value, &kind)| Some(binary(value?, kind)))
                        .collect();
                    self.send_data(&row)?;
                    self.send(b'C', b"SELECT 1\0")?;
                }
                [b'S'] => self.send(b'Z', b"I")?,
                [b'C'] => self.send(b'3', b"")?,
                _ => return Ok(()),
            }
        }
    }

    /// The number that it calls its process.
    fn process(&self) -> u16 {
        self.stream.peer_addr().unwrap().port()
    }

    fn ask_for_rounds(&mut self, rounds: u32) -> io::Result<()> {
        self.send(b'R', b"\0\0\0\x0aSCRAM-SHA-256\0\0")?;
        let (_, initial) = self.receive(1)?;
        let initial = String::from_utf8_lossy(&initial).into_owned();
        let (_, nonce) = initial.split_once("r=").unwrap();
        self.send(b'R', format!("\0\0\0\x0br={nonce}+,s=c2FsdA==,i={rounds}").as_bytes())?;
        self.receive(1)?;
        // Who does not know the password cannot sign.
        if rounds > 1 {
            self.send(b'R', format!("\0\0\0\x0cv={}=", "A".repeat(43)).as_bytes())?;
        }
        self.send(b'R', &0_u32.to_be_bytes())?;
        self.send(b'Z', b"I")?;
        self.receive(1).map(drop)
    }

    fn answer(&self, statement: &str, stamp: &mut String) -> Option<Row> {
        let us = self.process();
        let between = |from: &str, to: &str| Some(statement.split_once(from)?.1.split_once(to)?.0.to_owned());
        let mut locks = self.state.locks.lock().unwrap();
        let who = format!("{us} {stamp}").trim().to_owned();
        let mut more = Vec::new();
        if let Some(new) = between("('tokio_lockfile.stamp', '", "'") {
            *stamp = new;
            more = vec![None];
        } else if statement.contains("AS limits") {
            more = vec![Some("3".into())];
        } else if statement.contains("'idle_session_timeout'") {
            more = vec![Some("10s".into())];
        } else if statement.contains(UNLOCK) {
            let key = between("pg_advisory_unlock(", ")").unwrap();
            let was_ours = locks.get(&key) == Some(&us) && locks.remove(&key).is_some();
            more = vec![Some(if was_ours { "t" } else { "f" }.into()), Some("name".into()), None];
        } else if statement.contains(WAKE) || statement.contains(FREE) {
            more = vec![None];
        } else if let Some(key) = between("pg_try_advisory_lock(", ")") {
            let is_ours = *locks.entry(key).or_insert(us) == us;
            let grant = if statement.contains("pg_current_xact_id") { "1 000000010000000000000001 0/0" } else { "t" };
            more = vec![is_ours.then(|| grant.into())];
        } else if let Some(key) = between("pg_advisory_unlock(", ")") {
            more =
                vec![Some(if locks.get(&key) == Some(&us) && locks.remove(&key).is_some() { "t" } else { "f" }.into())];
        } else if statement.contains("count(*) FROM pg_catalog.pg_locks") {
            more = vec![Some(locks.values().filter(|&&owner| owner == us).count().to_string().into())];
        } else if statement.contains("pg_locks") {
            more = vec![Some("1".into()), Some("psql".into()), None, Some("0".into())];
        } else if !statement.starts_with("SELECT") {
            return None;
        }
        let row = [Some(who.into_bytes()), Some("f".into())].into_iter().chain(more).collect();
        Some(self.twisted(statement, row))
    }

    fn twisted(&self, statement: &str, row: Row) -> Row {
        match &*self.state.twist.lock().unwrap() {
            Some(twist) => twist(statement, row),
            None => row,
        }
    }

    /// Says which types the columns have.
    fn describe(&mut self, types: &[u32]) -> io::Result<()> {
        let mut description = (types.len() as u16).to_be_bytes().to_vec();
        for kind in types {
            description.extend(b"c\0\0\0\0\0\0\0");
            description.extend(kind.to_be_bytes());
            description.extend(b"\xff\xff\xff\xff\xff\xff\0\0");
        }
        self.send(b'T', &description)
    }

    fn send_data(&mut self, row: &Row) -> io::Result<()> {
        let mut data = (row.len() as u16).to_be_bytes().to_vec();
        for value in row {
            data.extend(value.as_ref().map_or(-1, |value| value.len() as i32).to_be_bytes());
            data.extend(value.iter().flatten());
        }
        self.send(b'D', &data)
    }

    fn send(&mut self, tag: u8, body: &[u8]) -> io::Result<()> {
        let length = (4 + body.len() as u32).to_be_bytes();
        self.stream.write_all(&[&[tag], &length[..], body].concat())
    }

    /// A message whose type has this many bytes: the first one has none.
    fn receive(&mut self, tag: usize) -> io::Result<(Vec<u8>, Vec<u8>)> {
        let (mut kind, mut length) = (vec![0; tag], [0; 4]);
        self.stream.read_exact(&mut kind)?;
        self.stream.read_exact(&mut length)?;
        let mut body = vec![0; u32::from_be_bytes(length) as usize - 4];
        self.stream.read_exact(&mut body)?;
        Ok((kind, body))
    }
}

/// One round, many, and more than can ever be made.
#[tokio::test]
async fn a_server_that_makes_its_clients_compute_costs_no_lock_elsewhere() {
    let held = Server::shared().lock("lock=beside_hostile&ttl=2s");
    let guard = take(&held).await;
    for (rounds, reason) in [
        (1, "none of a login"),
        (20_000, "incorrect server signature"),
        (u32::MAX, "4294967295 rounds of SCRAM-SHA-256"),
    ] {
        let fake = Fake::start(rounds);
        let (lock, other) = (fake.lock("x", "4s"), fake.lock("y", "5s"));
        let attempts = async { tokio::join!(lock.attempt(), other.attempt()) };
        let error = tokio::select! {
            attempts = timeout(HANG, attempts) => attempts.expect("hangs").0.unwrap_err().to_string(),
            reason = guard.lost() => panic!("lost beside {rounds} rounds: {reason:?}"),
        };
        assert!(error.contains(reason) && !error.contains("pw"), "{error}");
    }
    assert!(guard.is_held());
    guard.release().await.unwrap();
}

/// Each answer with fewer columns than were asked for, and with a value that is no text.
#[tokio::test]
async fn an_answer_that_is_none_is_an_error_and_no_panic() {
    const STATEMENTS: [(&str, usize); 5] =
        [("idle_session_timeout', true)", 3), ("tokio_lockfile.stamp', '", 3), (TRY, 3), (UNLOCK, 3), ("pg_locks", 6)];
    for (statement, columns) in STATEMENTS {
        for column in 0..columns {
            for cuts in [true, false] {
                let fake = Fake::start(0);
                let locks = ["10s", "11s"].map(|ttl| fake.lock("x", ttl));
                take(&locks[0]).await.release().await.expect("it works before");
                fake.twist(move |asked, mut row| {
                    if asked.contains(statement) {
                        row.resize(columns, None);
                        match cuts {
                            true => row.truncate(column),
                            false => row[column] = Some(b"\xff".into()),
                        }
                    }
                    row
                });
                // The first one has a session already.
                for lock in &locks {
                    for error in timeout(HANG, errors(lock)).await.expect("hangs") {
                        let error = error.to_string();
                        assert!(!error.contains("panicked"), "{statement} {column} {cuts}: {error}");
                    }
                }
                fake.behave();
                take(&locks[0]).await.release().await.expect("it works again");
            }
        }
    }
}

/// Here whether it has released the lock. The next try has a session that owes no answer.
#[tokio::test]
async fn a_session_that_owes_an_answer_is_not_used_again() {
    let fake = Fake::start(0);
    fake.twist(|asked, mut row| {
        if asked.contains(UNLOCK) {
            row.clear();
        }
        row
    });
    let lock = fake.lock("x&connect_timeout=1s", "30s");
    for _ in 0..2 {
        take(&lock).await.release().await.unwrap_err();
    }
}

#[tokio::test]
async fn a_place_that_no_queue_has_is_an_error_and_no_panic() {
    for place in ["-9223372036854775808", "-1", "1048576", "9223372036854775807"] {
        let fake = Fake::start(0);
        fake.twist(|asked, mut row| {
            if asked.contains("AS entered") {
                row.truncate(2);
                row.extend([Some(place.into()), Some("f".into())]);
            } else if asked.contains(TRY) {
                row[2] = None;
            }
            row
        });
        let wait = timeout(HANG, fake.lock("x&connect_timeout=1s", "3s").obtain()).await.expect("hangs");
        let error = wait.unwrap_err().to_string();
        assert!(error.contains("not that of PostgreSQL"), "{place}: {error}");
    }
}

/// Memory for what an answer announces could be more than there is, and then the process ends.
#[tokio::test]
async fn an_array_is_as_long_as_what_comes_of_it() {
    let fake = Fake::start(0);
    fake.twist(|asked, mut row| {
        if asked.contains(FREE) {
            row[2] = Some(HUGE_ARRAY.into());
        } else if asked.contains("AS entered") {
            row.truncate(2);
            row.extend([Some("0".into()), Some("f".into())]);
        } else if asked.contains(TRY) {
            row[2] = None;
        }
        row
    });
    let peak = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmPeak:")).unwrap();
        peak.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() >> 20
    };
    let before = peak();
    // Longer than from one look to the next.
    let wait = timeout(HANG, fake.lock("x&connect_timeout=2s", "3s").obtain()).await.expect("hangs");
    let error = wait.unwrap_err().to_string();
    assert!(error.contains("not that of PostgreSQL"), "{error}");
    assert!(peak() < before + 8, "{} GiB", peak());
}

/// A kernel can refuse a timer, which the server only logs. It shows the value that counts.
#[tokio::test]
async fn a_setting_that_does_not_last_is_told_and_no_lock_is_taken() {
    let settings = [
        ("", true),
        ("tcp_user_timeout=0", true),
        ("tcp_keepalives_idle=7200", false),
        ("idle_session_timeout=0", false),
    ];
    for (setting, is_fine) in settings {
        let fake = Fake::start(0);
        fake.twist(move |asked, mut row| {
            if asked.contains("('tokio_lockfile.stamp', '") && !setting.is_empty() {
                row[2] = Some(setting.into());
            }
            row
        });
        match timeout(HANG, fake.lock("x", "10s").attempt()).await.expect("hangs") {
            Ok(guard) => assert!(is_fine && guard.is_some(), "{setting}"),
            Err(error @ LockError::Unsupported { .. }) => {
                assert!(!is_fine && error.to_string().contains(setting), "{error}")
            }
            Err(error) => panic!("{setting}: {error}"),
        }
    }
}

async fn errors(lock: &LockFile) -> Vec<LockError> {
    let mut errors = Vec::new();
    match lock.attempt().await {
        Ok(Some(guard)) => errors.extend(guard.release().await.err()),
        Ok(None) => {}
        Err(error) => errors.push(error),
    }
    errors.extend(lock.holder().await.err());
    errors
}
