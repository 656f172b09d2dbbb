//! The watches of this process in a cluster, all on one stream, as Go's client has them: a proxy allows few streams for each
//! connection (128 in nginx, 100 in haproxy).
//!
//! A watch names itself by a number. etcd takes that number, and answers to all requests of a stream in their order. A
//! proxy with watches of its own (`etcd grpc-proxy`) gives other numbers, and answers in any order. There, one watch is
//! begun after another, as Go's client does it.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::time::{Instant, sleep, sleep_until};

use super::cluster::Cluster;
use super::failure::Failure;
use super::grpc::Stream;
use super::keys;
use super::proto::{WatchRequest, WatchResponse, enumeration};
use crate::engine::server::driver;
use crate::util::backoff::Backoff;

/// The pauses before one looks and watches again, the shortest and the longest. They grow while streams are short-lived.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// The longest silence on a stream: proxies end one that nobody uses, after a minute by default in nginx.
const LONGEST_SILENCE: Duration = Duration::from_secs(20);

/// How many requests for progress may have no answer.
const MOST_SILENCES: u32 = 3;

/// Above the numbers that a server gives.
const FIRST_NUMBER: i64 = 1 << 32;

pub(super) struct Watches {
    cluster: Arc<Cluster>,
    state: Mutex<State>,
    pause: Arc<Mutex<Pause>>,
}

struct State {
    next: i64,
    /// To the job that has the stream. Closed if there is none.
    orders: UnboundedSender<Order>,
}

/// The pause of this process after a stream has broken off.
struct Pause {
    backoff: Backoff,
    current: Duration,
}

enum Order {
    Begin(i64, Watch),
    End(i64),
}

struct Watch {
    key: Vec<u8>,
    /// From which revision on.
    from: i64,
    /// Whether the key was deleted, or the watch has broken off.
    tell: mpsc::Sender<bool>,
    /// The number that the server has given to it.
    id: Option<i64>,
}

impl Watches {
    pub(super) fn new(cluster: Arc<Cluster>) -> Self {
        let state = State { next: FIRST_NUMBER, orders: mpsc::unbounded_channel().0 };
        let pause = Pause { backoff: Backoff::new(PAUSES), current: PAUSES.0 };
        Self { cluster, state: Mutex::new(state), pause: Arc::new(Mutex::new(pause)) }
    }

    /// Resolves to true when one of the keys is deleted, at the revision `from` or later. Resolves to false when a watch has
    /// broken off. Then the caller looks, after a [`pause`](Self::pause), whether the keys are still there. Cancel safe.
    pub(super) async fn deletion(&self, keys: &[&[u8]], from: i64) -> bool {
        let (tell, mut told) = mpsc::channel(1);
        let _watching = self.begin(keys, from, tell);
        told.recv().await == Some(true)
    }

    fn begin(&self, keys: &[&[u8]], from: i64, tell: mpsc::Sender<bool>) -> Watching<'_> {
        let mut state = lock(&self.state);
        if state.orders.is_closed() {
            let (orders, given) = mpsc::unbounded_channel();
            // Without the job, those who watch hear that it is over.
            let _ = driver::spawn(keep(Arc::clone(&self.cluster), given, Arc::clone(&self.pause)));
            state.orders = orders;
        }
        let first = state.next;
        for &key in keys {
            let watch = Watch { key: key.to_owned(), from, tell: tell.clone(), id: None };
            let _ = state.orders.send(Order::Begin(state.next, watch));
            state.next += 1;
        }
        Watching { watches: self, numbers: first..state.next }
    }

    /// After a watch has broken off. It is the same for all of this process, so that they look together.
    pub(super) async fn pause(&self) {
        let pause = lock(&self.pause).current;
        sleep(pause).await;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends the watches.
struct Watching<'a> {
    watches: &'a Watches,
    numbers: Range<i64>,
}

impl Drop for Watching<'_> {
    fn drop(&mut self) {
        let state = lock(&self.watches.state);
        for number in self.numbers.clone() {
            let _ = state.orders.send(Order::End(number));
        }
    }
}

/// Has a stream until it breaks off, or until nobody is left who could watch. Those who watch then hear that it is over.
async fn keep(cluster: Arc<Cluster>, mut orders: UnboundedReceiver<Order>, pause: Arc<Mutex<Pause>>) {
    let began = Instant::now();
    let mut table = Table::default();
    let _ = exchange(&cluster, &mut orders, &mut table).await;
    orders.close();
    let mut pause = lock(&pause);
    if began.elapsed() > 2 * PAUSES.1 {
        pause.backoff = Backoff::new(PAUSES);
    }
    pause.current = pause.backoff.next();
}

async fn exchange(cluster: &Cluster, orders: &mut UnboundedReceiver<Order>, table: &mut Table) -> Result<(), Failure> {
    let mut stream: Stream<WatchRequest> = cluster.stream(cluster.deadline()).await?;
    let silence = (cluster.config.ttl / 3).clamp(Duration::from_secs(1), LONGEST_SILENCE);
    let mut next = Instant::now() + silence;
    loop {
        tokio::select! {
            biased;
            // As fast as they come: `h2` ends a connection with many small frames that nobody reads.
            answer = stream.next() => match answer? {
                Some(answer) => table.hear(&answer)?,
                None => return Err(Failure::no_answer()),
            },
            order = orders.recv() => match order {
                Some(order) => table.take(order),
                None => return Ok(()),
            },
            () = sleep_until(next) => {
                table.check_progress()?;
                stream.send(&keys::ask_for_progress(), false)?;
                next = Instant::now() + silence;
            }
        }
        for request in table.requests() {
            stream.send(&request, false)?;
        }
    }
}

/// The watches on one stream.
#[derive(Default)]
struct Table {
    /// By our numbers.
    watches: HashMap<i64, Watch>,
    /// Our numbers, by those that the server has given.
    numbers: HashMap<i64, i64>,
    /// Those that the server has not been asked for yet.
    new: VecDeque<i64>,
    /// Those that it has not answered yet, in the order of the requests.
    asked: VecDeque<i64>,
    /// The one that had no answer yet when we last looked.
    overdue: Option<i64>,
    /// Watches of the server that nobody wants any more.
    unwanted: Vec<i64>,
    /// How many requests for progress have gone out since we last heard of the server.
    silences: u32,
    /// Whether the server takes our numbers, and so answers in order.
    takes_numbers: bool,
}

impl Table {
    fn take(&mut self, order: Order) {
        match order {
            Order::Begin(number, watch) => {
                self.watches.insert(number, watch);
                self.new.push_back(number);
            }
            Order::End(number) => {
                let id = self.watches.remove(&number).and_then(|watch| watch.id);
                if let Some(id) = id.filter(|id| self.numbers.remove(id).is_some()) {
                    self.unwanted.push(id);
                }
            }
        }
    }

    /// What is to be sent now.
    fn requests(&mut self) -> Vec<WatchRequest> {
        let mut requests: Vec<_> = self.unwanted.drain(..).map(keys::end_watch).collect();
        while self.takes_numbers || self.asked.is_empty() {
            let Some(number) = self.new.pop_front() else { break };
            if let Some(watch) = self.watches.get(&number) {
                requests.push(keys::watch(number, &watch.key, watch.from));
                self.asked.push_back(number);
            }
        }
        requests
    }

    fn hear(&mut self, answer: &WatchResponse) -> Result<(), Failure> {
        self.silences = 0;
        if answer.created {
            return self.begun(answer);
        }
        // Also an answer to a request for progress, which is about no watch.
        let Some(&number) = self.numbers.get(&answer.watch_id) else { return Ok(()) };
        let is_deleted = answer.events.iter().any(|event| event.r#type == enumeration::DELETE);
        if is_deleted || answer.canceled {
            self.tell(number, is_deleted);
        }
        if answer.canceled {
            self.numbers.remove(&answer.watch_id);
        }
        Ok(())
    }

    fn begun(&mut self, answer: &WatchResponse) -> Result<(), Failure> {
        let disorder = || Failure::broken(io::Error::other("the server answers for a watch that nobody has asked for"));
        let number = self.asked.pop_front().ok_or_else(disorder)?;
        if answer.canceled {
            // For example, the token is not valid any more. Then the next stream has a new one.
            return Err(Failure::broken(io::Error::other("the server refuses a watch")));
        }
        let id = answer.watch_id;
        if self.takes_numbers && id != number {
            return Err(disorder());
        }
        self.takes_numbers = id == number;
        match self.watches.get_mut(&number) {
            Some(watch) => {
                watch.id = Some(id);
                self.numbers.insert(id, number);
            }
            None => self.unwanted.push(id),
        }
        Ok(())
    }

    fn tell(&self, number: i64, is_deleted: bool) {
        if let Some(watch) = self.watches.get(&number) {
            // Whoever has been told already does not need more.
            let _ = watch.tell.try_send(is_deleted);
        }
    }

    /// Fails if the server has not answered to the oldest request since the last time, or has said nothing for too long.
    /// Newer versions of etcd do not answer to each request for progress, and its proxy to none.
    fn check_progress(&mut self) -> Result<(), Failure> {
        let oldest = self.asked.front().copied();
        let is_silent = self.silences >= MOST_SILENCES && self.takes_numbers && !self.numbers.is_empty();
        if is_silent || (oldest.is_some() && oldest == self.overdue) {
            return Err(Failure::no_answer());
        }
        self.overdue = oldest;
        self.silences += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc::error::TryRecvError;

    use super::*;
    use crate::engine::etcd::proto::Event;

    fn begin(table: &mut Table, number: i64) -> mpsc::Receiver<bool> {
        let (tell, told) = mpsc::channel(1);
        table.take(Order::Begin(number, Watch { key: b"k".to_vec(), from: 7, tell, id: None }));
        told
    }

    fn asked(table: &mut Table) -> Vec<i64> {
        table.requests().iter().filter_map(|request| Some(request.create.as_ref()?.watch_id)).collect()
    }

    fn ended(table: &mut Table) -> Vec<i64> {
        table.requests().iter().filter_map(|request| Some(request.cancel.as_ref()?.watch_id)).collect()
    }

    fn created(id: i64) -> WatchResponse {
        WatchResponse { watch_id: id, created: true, ..WatchResponse::default() }
    }

    fn deleted(id: i64) -> WatchResponse {
        let event = Event { r#type: enumeration::DELETE, kv: None };
        WatchResponse { watch_id: id, events: vec![event], ..WatchResponse::default() }
    }

    #[test]
    fn etcd_is_asked_for_all_at_once_and_a_proxy_for_one_after_another() {
        for is_etcd in [true, false] {
            let mut table = Table::default();
            let mut told: Vec<_> = (100..104).map(|number| begin(&mut table, number)).collect();
            let id = |number: i64| if is_etcd { number } else { 3 - (number - 100) };
            assert_eq!(asked(&mut table), [100], "nobody knows yet what it is");
            table.hear(&created(id(100))).unwrap();
            let rest = asked(&mut table);
            assert_eq!(rest.len(), if is_etcd { 3 } else { 1 });
            for number in 101..104 {
                table.hear(&created(id(number))).unwrap();
                asked(&mut table);
            }
            table.hear(&deleted(id(102))).unwrap();
            assert_eq!(told[2].try_recv(), Ok(true));
            for other in [0, 1, 3] {
                assert_eq!(told[other].try_recv(), Err(TryRecvError::Empty));
            }
            table.take(Order::End(102));
            assert_eq!(ended(&mut table), [id(102)]);
            table.hear(&WatchResponse { watch_id: id(102), canceled: true, ..WatchResponse::default() }).unwrap();
        }
    }

    #[test]
    fn a_watch_that_the_server_ends_is_told_so_and_one_that_it_refuses_ends_the_stream() {
        let mut table = Table::default();
        let mut told = begin(&mut table, 100);
        assert_eq!(asked(&mut table), [100]);
        table.hear(&created(100)).unwrap();
        table.hear(&WatchResponse { watch_id: 100, canceled: true, ..WatchResponse::default() }).unwrap();
        assert_eq!(told.try_recv(), Ok(false));
        table.take(Order::End(100));
        assert_eq!(ended(&mut table), [0; 0], "the server has ended it itself");
        assert!(table.hear(&created(5)).is_err(), "nobody has asked for it");
        let _told = begin(&mut table, 101);
        assert_eq!(asked(&mut table), [101]);
        assert!(table.hear(&WatchResponse { canceled: true, ..created(-1) }).is_err());
    }

    #[test]
    fn a_watch_that_nobody_wants_any_more_is_ended_once_it_has_begun() {
        let mut table = Table::default();
        drop(begin(&mut table, 100));
        drop(begin(&mut table, 101));
        assert_eq!(asked(&mut table), [100]);
        table.take(Order::End(100));
        table.take(Order::End(101));
        assert!(table.requests().is_empty());
        table.hear(&created(100)).unwrap();
        assert_eq!(ended(&mut table), [100]);
    }

    #[test]
    fn a_server_that_does_not_answer_is_noticed() {
        let mut table = Table::default();
        let _told = begin(&mut table, 100);
        asked(&mut table);
        assert!(table.check_progress().is_ok());
        assert!(table.check_progress().is_err());
        table.hear(&created(100)).unwrap();
        assert!((0..MOST_SILENCES).all(|_| table.check_progress().is_ok()));
        table.hear(&WatchResponse { watch_id: -1, ..WatchResponse::default() }).unwrap();
        assert!((0..MOST_SILENCES).all(|_| table.check_progress().is_ok()));
        assert!(table.check_progress().is_err());
    }
}
