//! The network between the holder and the server breaks. The holder is in a network namespace of its own. The test is beside
//! the server, at its Unix socket.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use tokio::time::timeout;
use tokio_lockfile::{LockError, LockFile};

use crate::last_held::last_held;
use crate::namespaces::Namespaces;
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

#[tokio::test]
async fn a_holder_behind_a_partition_loses_the_lock_before_the_next_one_has_it() {
    for ttl in [1, 3] {
        let namespaces = Namespaces::new();
        let mut server = Server::prepare(Namespaces::SERVER);
        server.configure(EAGER);
        server.run_in(&namespaces.server);
        let remote = server.lock(&format!("lock=x&ttl={ttl}s"));
        let mut command = namespaces.program();
        command.args(["partition::hold_until_lost", "--exact", "--nocapture"]);
        let mut holder = Holder::spawn(&mut command, ROLE, &remote);
        holder.says("HELD");
        let lock = local(&server, &format!("lock=x&ttl={ttl}s"));
        assert!(lock.attempt().await.unwrap().is_none());
        namespaces.cut();
        let cut = now();
        let guard = timeout(HANG, lock.obtain()).await.expect("the lock does not come").unwrap();
        let got = now();
        let line = holder.says("LOST");
        let lost = Duration::from_nanos(line.rsplit(' ').next().unwrap().trim().parse().unwrap());
        println!("ttl {ttl} s: lost after {:?}, next holder after {:?}", lost - cut, got - cut);
        assert!(lost < got, "two holders for {:?}", lost - got);
        // A tenth of the lease is what the clocks may differ by.
        assert!(got - lost > Duration::from_secs(ttl) * 9 / 100, "only {:?} between the two", got - lost);
        guard.release().await.unwrap();
        holder.kill();
    }
}

const ROLE: &str = "TOKIO_LOCKFILE_TEST_HOLD_UNTIL_LOST";

/// Not a real test: the process of the test above runs this.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hold_until_lost() {
    let Ok(url) = std::env::var(ROLE) else { return };
    let guard = LockFile::open(&url).unwrap().obtain().await.unwrap();
    println!("HELD");
    let last = last_held(&guard, now).await;
    let told = guard.lost().await;
    println!("LOST {told} {}", last.as_nanos());
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
    crate::server::until(&server.client().await, &crate::server::sessions("x", false), "1").await;
    namespaces.cut();
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
