//! Who starts the workers, kills them and stops them.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::witness::{condemned, log};
use crate::worker::{MARK, Role};

/// Nobody takes the lock for so long only if it is stuck.
const STUCK: Duration = Duration::from_secs(30);

pub(crate) struct Campaign {
    name: &'static str,
    roles: &'static [Role],
}

#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) acquisitions: u64,
    pub(crate) kills: u64,
    pub(crate) stops: u64,
    pub(crate) violations: usize,
    pub(crate) lost_updates: u64,
}

struct Worker {
    child: Child,
    id: String,
    role: Role,
}

impl Worker {
    fn start(role: Role, dir: &Path, number: u64) -> Self {
        let id = number.to_string();
        let child = Command::new(std::env::current_exe().unwrap())
            .args([MARK, &format!("{role:?}")])
            .arg(dir)
            .arg(&id)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, id, role }
    }

    /// Says first that it is going to die: what it leaves is nobody's then.
    fn kill(&mut self, dir: &Path) {
        fs::write(condemned(dir, &self.id), "").unwrap();
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn signal(&self, signal: Signal) {
        let _ = kill_process(Pid::from_child(&self.child), signal);
    }
}

impl Campaign {
    pub(crate) fn new(name: &'static str, roles: &'static [Role]) -> Self {
        Self { name, roles }
    }

    /// Until the lock has been taken so often, or `is_enough`.
    pub(crate) fn run(&self, target: u64, is_enough: impl Fn(&Found) -> bool) -> Found {
        let dir = TempDir::new_in("/dev/shm").unwrap();
        let dir = dir.path();
        fs::create_dir(dir.join("locks")).unwrap();
        fs::write(dir.join("counter"), [0; 8]).unwrap();
        let started = Instant::now();
        let mut next_id = 0..;
        let mut start = |role| Worker::start(role, dir, next_id.next().expect("endless"));
        let mut workers: Vec<Worker> = self.roles.iter().map(|&role| start(role)).collect();
        let mut found = Found::default();
        let (mut finished, mut progress) = (0, Instant::now());
        while found.acquisitions < target && !is_enough(&found) {
            std::thread::sleep(Duration::from_micros(fastrand::u64(100..10_000)));
            let victim = &mut workers[fastrand::usize(0..self.roles.len())];
            assert!(victim.child.try_wait().unwrap().is_none(), "{}: a worker has failed", self.name);
            if fastrand::bool() {
                victim.kill(dir);
                finished += acquisitions(dir, &victim.id);
                fs::remove_file(log(dir, &victim.id)).ok();
                *victim = start(victim.role);
                found.kills += 1;
            } else {
                victim.signal(Signal::STOP);
                std::thread::sleep(Duration::from_micros(fastrand::u64(100..5_000)));
                victim.signal(Signal::CONT);
                found.stops += 1;
            }
            let before = found.acquisitions;
            found.acquisitions = finished + workers.iter().map(|worker| acquisitions(dir, &worker.id)).sum::<u64>();
            found.violations = violations(dir);
            if found.acquisitions > before {
                progress = Instant::now();
            }
            assert!(progress.elapsed() < STUCK, "{}: stuck", self.name);
        }
        for worker in &mut workers {
            worker.kill(dir);
            found.kills += 1;
        }
        found.acquisitions = finished + workers.iter().map(|worker| acquisitions(dir, &worker.id)).sum::<u64>();
        found.violations = violations(dir);
        let counted = u64::from_le_bytes(fs::read(dir.join("counter")).unwrap().try_into().unwrap());
        // Who is killed between the counter and his log has counted once more.
        assert!(counted <= found.acquisitions + found.kills);
        found.lost_updates = found.acquisitions.saturating_sub(counted);
        println!("{}: {found:?} in {:.1?}", self.name, started.elapsed());
        found
    }
}

fn acquisitions(dir: &Path, id: &str) -> u64 {
    fs::metadata(log(dir, id)).map_or(0, |log| log.len())
}

fn violations(dir: &Path) -> usize {
    fs::read_to_string(dir.join("violations")).map_or(0, |lines| lines.lines().count())
}
