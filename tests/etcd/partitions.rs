//! Cuts in the network, with each member of the cluster and each process in a network namespace of its own.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdout, Stdio};
use std::time::{Duration, SystemTime};

use tokio_lockfile::LockFile;

use crate::cluster::{Cluster, Settings};
use crate::last_held::last_held;
use crate::network::{Network, within};

const TTL: Duration = Duration::from_secs(3);

/// The hosts of the processes. Those of the members are 0, 1 and 2.
const HOLDER: usize = 3;
const NEXT: usize = 4;

fn setting() -> (Network, Cluster) {
    let network = Network::of(5);
    let cluster = Cluster::with(3, Settings { networks: network.members(3), ..Settings::default() });
    (network, cluster)
}

/// A process on one of the hosts, that runs [`hold_and_report`].
struct Process {
    child: Child,
    lines: BufReader<ChildStdout>,
}

const ROLE: &str = "TOKIO_LOCKFILE_TEST_REPORT";

impl Process {
    fn start(network: &Network, host: usize, url: &str) -> Self {
        let program = std::env::current_exe().unwrap();
        let mut child = within(&network.namespace(host), program.to_str().unwrap())
            .args(["partitions::hold_and_report", "--exact", "--nocapture", "--test-threads=1"])
            .env(ROLE, url)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines }
    }

    /// Waits for the word. Returns when the process said it, on the clock of this machine.
    fn says(&mut self, word: &str) -> Duration {
        let mut line = String::new();
        loop {
            line.clear();
            assert_ne!(self.lines.read_line(&mut line).unwrap(), 0, "it ended without {word}");
            // The harness prints in front of the first word.
            if let Some((_, rest)) = line.split_once(word) {
                return Duration::from_micros(rest.trim().parse().unwrap());
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// Not a real test: a [`Process`] runs this. It takes the lock, and says when it got it and until when it had it.
#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "a test, and no work of the library")]
async fn hold_and_report() {
    let Ok(url) = std::env::var(ROLE) else { return };
    let say = |word: &str| {
        println!("{word} {}", now().as_micros());
        std::io::stdout().flush().unwrap();
    };
    let lock = LockFile::open(&url).unwrap();
    let guard = lock.obtain().await.unwrap();
    say("HELD");
    let told = tokio::task::spawn_blocking(|| std::io::copy(&mut std::io::stdin(), &mut std::io::sink()));
    tokio::select! {
        _ = told => drop(guard.release().await),
        last = last_held(&guard, now) => {
            let reason = guard.lost().await;
            println!("LOST-{reason:?} {}", last.as_micros());
        }
    }
}

fn now() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap()
}

/// The lock is no longer the holder's before the next one can have it: on one clock, nothing overlaps.
#[test]
fn a_holder_without_a_way_to_the_cluster() {
    let (network, cluster) = setting();
    let url = cluster.url("x", "");
    let mut margins = Vec::new();
    for _ in 0..3 {
        let mut holder = Process::start(&network, HOLDER, &url);
        holder.says("HELD");
        let mut next = Process::start(&network, NEXT, &url);
        while cluster.keys("x").len() < 2 {}
        let cut = now();
        (0..3).for_each(|member| network.cut(HOLDER, member));
        let lost = holder.says("LOST-Expired");
        let held = next.says("HELD");
        (0..3).for_each(|member| network.mend(HOLDER, member));
        println!("lost after {:?}, the next one holds after {:?}", lost - cut, held - cut);
        assert!(held > lost, "two holders for {:?}", lost - held);
        // Much longer only if the lease is not what the URL says.
        assert!(held - cut < TTL * 3);
        margins.push(held - lost);
    }
    println!("margins: {margins:?}");
}

/// The old leader answers for a moment longer, and only to the holder. The new one gives each lease its whole time again.
#[test]
fn a_holder_alone_with_the_old_leader() {
    let (network, cluster) = setting();
    let url = cluster.url("x", "");
    for _ in 0..3 {
        let leader = cluster.leader();
        let others: Vec<usize> = (0..3).filter(|&other| other != leader).collect();
        others.iter().for_each(|&other| network.cut(HOLDER, other));
        let mut holder = Process::start(&network, HOLDER, &url);
        holder.says("HELD");
        network.cut(NEXT, leader);
        let mut next = Process::start(&network, NEXT, &url);
        while cluster.keys("x").len() < 2 {}
        others.iter().for_each(|&other| network.cut(leader, other));
        let lost = holder.says("LOST-Expired");
        let held = next.says("HELD");
        println!("alone with the old leader: the next one holds {:?} later", held.saturating_sub(lost));
        assert!(held > lost, "two holders for {:?}", lost - held);
        others.iter().for_each(|&other| {
            network.mend(leader, other);
            network.mend(HOLDER, other);
        });
        network.mend(NEXT, leader);
        drop((holder, next));
        cluster.wait_until_all_are_healthy();
    }
}

/// The member that the holder talks to has lost the others, and the holder has not lost it.
#[test]
fn a_member_without_the_others() {
    let (network, cluster) = setting();
    let url = cluster.lasting_url("x");
    let mut holder = Process::start(&network, HOLDER, &url);
    holder.says("HELD");
    for member in 0..3 {
        let others: Vec<usize> = (0..3).filter(|&other| other != member).collect();
        others.iter().for_each(|&other| network.cut(member, other));
        // It would have lost the lock by now if it had stayed with that member.
        std::thread::sleep(Duration::from_secs(8));
        others.iter().for_each(|&other| network.mend(member, other));
        cluster.wait_until_all_are_healthy();
    }
    let mut next = Process::start(&network, NEXT, &url);
    while cluster.keys("x").len() < 2 {}
    drop(holder);
    next.says("HELD");
}

/// As a firewall that drops all packets to one member, from the beginning.
#[test]
fn a_member_that_swallows_everything() {
    let (network, cluster) = setting();
    for member in 0..3 {
        network.cut(HOLDER, member);
        let mut holder = Process::start(&network, HOLDER, &cluster.url("x", ""));
        holder.says("HELD");
        drop(holder);
        network.mend(HOLDER, member);
    }
}

/// As the name of a headless service, of which one address is dead.
#[test]
fn a_name_with_a_dead_address() {
    let (network, cluster) = setting();
    network.cut(HOLDER, 0);
    // In both orders, for the system may choose one.
    let (dead, alive) = (network.address(0), network.address(1));
    for hosts in [format!("{dead} members\n{alive} members\n"), format!("{alive} members\n{dead} members\n")] {
        let _names = network.names(HOLDER, &hosts);
        let mut holder = Process::start(&network, HOLDER, "etcd://members/x?ttl=3s");
        holder.says("HELD");
    }
    drop(cluster);
}

/// A member that swallows everything does not keep one that has come back from being asked.
#[test]
fn a_member_that_comes_back_beside_one_that_swallows_everything() {
    let network = Network::of(5);
    let mut cluster = Cluster::with(1, Settings { networks: network.members(1), ..Settings::default() });
    network.cut(HOLDER, 1);
    let url = format!("etcd://{},{}/x?ttl=6s&connect_timeout=20s", network.address(1), network.address(0));
    let mut holder = Process::start(&network, HOLDER, &url);
    holder.says("HELD");
    cluster.kill(0);
    std::thread::sleep(Duration::from_secs(2));
    cluster.start(0);
    cluster.wait_until_all_are_healthy();
    // It would have lost the lock by now.
    std::thread::sleep(Duration::from_secs(8));
    let mut next = Process::start(&network, NEXT, &cluster.url("x", ""));
    while cluster.keys("x").len() < 2 {}
    drop(holder);
    next.says("HELD");
}
