//! The network between the holder and the server breaks. The holder is in a network namespace of its own. The test is beside
//! the server, at its Unix socket.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_lockfile::{LockError, LockFile};

use crate::last_held::last_held;
use crate::namespaces::{Namespaces, Way};
use crate::pools::{Haproxy, PgBouncer};
use crate::server::{Server, until_stdin_ends};
use crate::support::{HANG, Holder};

/// The time on a clock that all processes share.
fn now() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32)
}

/// Such a server gives silent clients up early, if it is not told otherwise.
const EAGER: &str = "tcp_keepalives_idle = 1\ntcp_keepalives_interval = 1\ntcp_keepalives_count = 1\n\
                     tcp_user_timeout = 500\nclient_connection_check_interval = 100";

fn local(server: &Server, parameters: &str) -> LockFile {
    let directory = server.dir().to_str().unwrap().replace('/', "%2F");
    LockFile::open(&format!("postgres://postgres@{directory}:{}/postgres?{parameters}", server.port)).unwrap()
}

/// Some locks of one process in a partition. They are taken one after the other, so the cut comes at many moments of a beat.
const LOCKS: u32 = 8;

/// Cuts the wire from the holder to `url`, and checks that each lock is lost before the next holder has it. `next` is a lock
/// that the cut does not concern.
async fn no_two_holders(namespaces: &Namespaces, way: Way, ttl: u64, url: &str, next: impl Fn(u32) -> LockFile) {
    let mut command = namespaces.program();
    command.args(["partition::hold_until_lost", "--exact", "--nocapture"]);
    let remote = LockFile::open(&format!("{url}&ttl={ttl}s")).unwrap();
    let mut holder = Holder::spawn(&mut command, ROLE, &remote);
    holder.says("HELD");
    let locks: Vec<_> = (0..LOCKS).map(&next).collect();
    for lock in &locks {
        assert!(lock.attempt().await.unwrap().is_none());
    }
    namespaces.cut(way);
    let cut = now();
    let mut waits = JoinSet::new();
    for (number, lock) in locks.into_iter().enumerate() {
        waits.spawn(async move {
            let guard = timeout(HANG, lock.obtain()).await.expect("the lock does not come").unwrap();
            let got = now();
            guard.release().await.unwrap();
            (number, got)
        });
    }
    let got: HashMap<_, _> = waits.join_all().await.into_iter().collect();
    for _ in 0..LOCKS {
        let line = holder.says("LOST");
        let mut words = line.trim().rsplit(' ');
        let lost = Duration::from_nanos(words.next().unwrap().parse().unwrap());
        let got = got[&words.next().unwrap().parse().unwrap()];
        println!("{way:?}, ttl {ttl} s: lost after {:?}, next holder after {:?}", lost - cut, got - cut);
        assert!(lost < got, "two holders for {:?}", lost - got);
        // A tenth of the lease is what the clocks may differ by.
        assert!(got - lost > Duration::from_secs(ttl) * 9 / 100, "only {:?} between the two", got - lost);
    }
    holder.kill();
}

fn remote(server: &Server, port: u16) -> String {
    format!("postgres://postgres@{}:{port}/postgres?lock=x", server.address())
}

#[tokio::test]
async fn a_holder_behind_a_partition_loses_the_lock_before_the_next_one_has_it() {
    for ttl in [1, 3] {
        let namespaces = Namespaces::new();
        let mut server = Server::prepare(Namespaces::SERVER);
        server.configure(EAGER);
        server.run_in(&namespaces.server);
        let next = |number| local(&server, &format!("lock=x{number}"));
        no_two_holders(&namespaces, Way::Both, ttl, &remote(&server, server.port), next).await;
    }
}

/// The server's kernel gives an answer up that nobody confirms, by default after 15 minutes. Then the server ends the
/// session.
async fn impatient_kernel(way: Way) {
    let namespaces = Namespaces::new();
    namespaces.set_retransmissions(3);
    let mut server = Server::prepare(Namespaces::SERVER);
    server.configure(EAGER);
    server.run_in(&namespaces.server);
    let next = |number| local(&server, &format!("lock=x{number}"));
    no_two_holders(&namespaces, way, 15, &remote(&server, server.port), next).await;
}

#[tokio::test]
async fn an_impatient_kernel_frees_no_lock_whose_holder_gets_no_answer() {
    impatient_kernel(Way::ToClient).await;
}

#[tokio::test]
async fn an_impatient_kernel_frees_no_lock_whose_holder_is_not_heard() {
    impatient_kernel(Way::ToServer).await;
}

#[tokio::test]
async fn an_impatient_kernel_frees_no_lock_in_a_partition() {
    impatient_kernel(Way::Both).await;
}

/// PgBouncer has its own connection to the client, and its kernel the same patience.
#[tokio::test]
async fn a_pool_of_sessions_frees_no_lock_early() {
    let namespaces = Namespaces::new();
    namespaces.set_retransmissions(3);
    let mut server = Server::prepare(Namespaces::SERVER);
    server.run_in(&namespaces.server);
    let more = "default_pool_size = 20\ntcp_user_timeout = 16000";
    let bouncer = PgBouncer::start_in(&namespaces.server, &server, "session", more);
    let next = |number| local(&server, &format!("lock=x{number}"));
    no_two_holders(&namespaces, Way::ToClient, 15, &remote(&server, bouncer.port()), next).await;
}

#[tokio::test]
async fn a_proxy_whose_limit_is_longer_than_the_lease_frees_no_lock_early() {
    let namespaces = Namespaces::new();
    let mut server = Server::prepare(Namespaces::SERVER);
    server.run_in(&namespaces.server);
    let haproxy = Haproxy::start_in(&namespaces.server, &server, "5s");
    let next = |number| local(&server, &format!("lock=x{number}"));
    no_two_holders(&namespaces, Way::Both, 4, &remote(&server, haproxy.port()), next).await;
}

const ROLE: &str = "TOKIO_LOCKFILE_TEST_HOLD_UNTIL_LOST";

/// Not a real test: the process of the tests above runs this, with a number behind the name of each lock.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hold_until_lost() {
    let Ok(url) = std::env::var(ROLE) else { return };
    let mut holders = JoinSet::new();
    for number in 0..LOCKS {
        let lock = LockFile::open(&url.replace("lock=x", &format!("lock=x{number}"))).unwrap();
        let guard = lock.obtain().await.unwrap();
        holders.spawn(async move {
            let last = last_held(&guard, now).await;
            let told = guard.lost().await;
            println!("LOST {told} {number} {}", last.as_nanos());
        });
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    println!("HELD");
    holders.join_all().await;
    until_stdin_ends();
}

/// The partition comes while a process waits.
#[tokio::test]
async fn a_wait_reports_a_server_that_went_away() {
    let namespaces = Namespaces::new();
    let mut server = Server::prepare(Namespaces::SERVER);
    server.run_in(&namespaces.server);
    let holder = Holder::holding(&local(&server, "lock=x"));
    let remote = server.lock("lock=x&ttl=3s&connect_timeout=2s");
    let mut command = namespaces.program();
    command.args(["partition::wait_and_tell", "--exact", "--nocapture"]);
    let mut waiter = Holder::spawn(&mut command, WAITER, &remote);
    waiter.says("WAITING");
    crate::server::until(&server.client().await, &crate::server::waiters("x"), "1").await;
    namespaces.cut(Way::Both);
    let cut = Instant::now();
    let line = waiter.says("ENDED");
    println!("{:?} after the cut: {line}", cut.elapsed());
    assert!(line.contains("has not answered for 2s"), "{line}");
    holder.release();
    waiter.kill();
}

const WAITER: &str = "TOKIO_LOCKFILE_TEST_WAIT_AND_TELL";

/// Not a real test: the process of the test above runs this.
#[tokio::test]
async fn wait_and_tell() {
    let Ok(url) = std::env::var(WAITER) else { return };
    println!("WAITING");
    match LockFile::open(&url).unwrap().obtain().await {
        Err(error @ LockError::Engine { .. }) => println!("ENDED {error}"),
        other => println!("ENDED {other:?}"),
    }
    until_stdin_ends();
}
