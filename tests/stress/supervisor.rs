//! Starts the workers of one campaign, stops and kills them at random, and adds up what they observed.

use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitOptions, kill_process_group, waitpgid};

use crate::arena::{Arena, Tally};
use crate::worker::{self, Role};

/// The limit for a hang. Without an error nothing takes this long: the longest correct wait is for a stopped worker.
const HANG: Duration = Duration::from_secs(60);

/// The calls at which a delayed worker is delayed.
const DANGEROUS: &str = "flock,link,linkat,unlink,unlinkat,kill";

/// One member of the crew. When its process is killed, another process is started for it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Member {
    pub(crate) role: Role,
    /// Whether strace delays it at each critical call.
    pub(crate) delayed: bool,
}

/// The result of a campaign.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) seen: Tally,
    pub(crate) acquired_by_role: Vec<(Role, u64)>,
    pub(crate) pauses: u64,
    pub(crate) kills: u64,
    pub(crate) lost_updates: u64,
    pub(crate) duration: Duration,
}

impl Outcome {
    pub(crate) fn violations(&self) -> u64 {
        self.seen.violations + self.lost_updates
    }
}

struct Worker {
    member: Member,
    instance: u64,
    child: Child,
}

impl Worker {
    /// Every worker leads a process group. The programs that it runs are in this group.
    fn group(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    fn signal(&self, signal: Signal) {
        kill_process_group(self.group(), signal).unwrap();
    }

    /// Waits until all processes of the group have ended, also those that became our children when their parent died.
    fn reap(&self) {
        while waitpgid(self.group(), WaitOptions::empty()).is_ok() {}
    }
}

pub(crate) struct Supervisor<'a> {
    dir: &'a Path,
    arena: Arena,
    crew: Vec<Worker>,
    started: u64,
    outcome: Outcome,
}

impl<'a> Supervisor<'a> {
    /// Starts the crew in a fresh directory.
    pub(crate) fn start(dir: &'a Path, crew: &[Member]) -> Self {
        let arena = Arena::create(dir);
        let mut supervisor = Self { dir, arena, crew: Vec::new(), started: 0, outcome: Outcome::default() };
        for &member in crew {
            worker::prepare(member.role, dir);
            let worker = supervisor.spawn(member);
            supervisor.crew.push(worker);
        }
        supervisor
    }

    /// Lets the crew compete until it has this many acquisitions, then ends it.
    pub(crate) fn run(mut self, acquisitions: u64) -> Outcome {
        let began = Instant::now();
        let (mut acquired, mut progress) = (0, Instant::now());
        while acquired < acquisitions {
            for _ in 0..16 {
                self.disturb();
            }
            let now = self.acquired();
            if now > acquired {
                (acquired, progress) = (now, Instant::now());
            }
            assert!(progress.elapsed() < HANG, "no process gets the lock any more: {}", self.scene());
        }
        self.arena.end();
        while !self.crew.is_empty() {
            self.await_end(0);
            let ended = self.crew.remove(0);
            self.add_up(&ended);
        }
        let (recorded, counted) = (self.outcome.seen.acquired, self.arena.counter());
        // A killed worker may have incremented the counter without recording it. Only that may make the counter higher.
        assert!(counted <= recorded + self.outcome.seen.undecided, "{counted} {:?}", self.outcome);
        self.outcome.lost_updates = recorded.saturating_sub(counted);
        self.outcome.duration = began.elapsed();
        std::mem::take(&mut self.outcome)
    }

    /// Stops a worker for a moment, or kills one, or both.
    fn disturb(&mut self) {
        random_sleep(..2_000);
        let victim = self.victim();
        if !self.is_at_work(victim) {
            return;
        }
        let (stop, kill) =
            [(true, false), (true, false), (true, false), (true, true), (false, true)][fastrand::usize(..5)];
        if stop {
            self.crew[victim].signal(Signal::STOP);
            random_sleep(100..5_000);
            self.outcome.pauses += 1;
        }
        if kill {
            self.kill(victim);
            // Other workers are breaking the dead holder's lock now: killing one of them is a good test, too.
            random_sleep(..1_000);
            let second = fastrand::usize(..self.crew.len());
            if second != victim && fastrand::bool() && self.is_at_work(second) {
                self.kill(second);
                self.replace(second);
            }
            self.replace(victim);
        } else if stop {
            self.crew[victim].signal(Signal::CONT);
        }
    }

    /// Whether the worker has finished its start.
    fn is_at_work(&mut self, place: usize) -> bool {
        if let Some(status) = self.crew[place].child.try_wait().unwrap() {
            panic!("{:?} ended early, {status}: {}", self.crew[place].member, self.scene());
        }
        self.arena.is_ready(self.crew[place].instance)
    }

    fn kill(&mut self, place: usize) {
        let worker = &self.crew[place];
        // Written before the kill, so that no process mistakes the marker of a dead instance for that of a live one.
        self.arena.condemn(worker.instance);
        worker.signal(Signal::KILL);
        worker.reap();
        self.outcome.kills += 1;
    }

    fn replace(&mut self, place: usize) {
        let replacement = self.spawn(self.crew[place].member);
        let dead = std::mem::replace(&mut self.crew[place], replacement);
        self.add_up(&dead);
    }

    /// A random worker; half of the time the one in the critical section. The others are in the middle of an attempt.
    fn victim(&self) -> usize {
        let inside = self.arena.marked().filter(|_| fastrand::bool());
        let inside = self.crew.iter().position(|worker| Some(worker.instance) == inside);
        inside.unwrap_or_else(|| fastrand::usize(..self.crew.len()))
    }

    fn spawn(&mut self, member: Member) -> Worker {
        use std::os::unix::process::CommandExt;
        self.started += 1;
        let program = std::env::current_exe().unwrap();
        let mut command = match member.delayed {
            true => {
                let delay = fastrand::u32(100..600);
                let mut strace = Command::new("strace");
                strace.args(["-f", "-qq", "-o", "/dev/null", "--seccomp-bpf"]);
                strace.args(["-e", &format!("trace={DANGEROUS}")]);
                strace.args(["-e", &format!("inject={DANGEROUS}:delay_enter={delay}")]);
                strace.arg(program);
                strace
            }
            false => Command::new(program),
        };
        command.args(["worker", member.role.name()]).arg(self.dir).arg(self.started.to_string());
        let child = command.process_group(0).spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Worker { member, instance: self.started, child }
    }

    fn await_end(&mut self, place: usize) {
        let (began, member) = (Instant::now(), self.crew[place].member);
        loop {
            match self.crew[place].child.try_wait().unwrap() {
                Some(status) => return assert!(status.success(), "{member:?}: {status}"),
                None => std::thread::sleep(Duration::from_millis(1)),
            }
            assert!(began.elapsed() < HANG, "{member:?} does not end: {}", self.scene());
        }
    }

    fn add_up(&mut self, worker: &Worker) {
        let tally = self.arena.tally(worker.instance);
        self.outcome.seen += tally;
        let by_role = &mut self.outcome.acquired_by_role;
        match by_role.iter_mut().find(|(role, _)| *role == worker.member.role) {
            Some((_, acquired)) => *acquired += tally.acquired,
            None => by_role.push((worker.member.role, tally.acquired)),
        }
    }

    fn acquired(&self) -> u64 {
        let living: u64 = self.crew.iter().map(|worker| self.arena.tally(worker.instance).acquired).sum();
        self.outcome.seen.acquired + living
    }

    /// The state of the directory, for the message of a failure.
    fn scene(&self) -> String {
        let lock = self.arena.lock();
        let names: Vec<_> =
            std::fs::read_dir(lock.parent().unwrap()).unwrap().map(|entry| entry.unwrap().path()).collect();
        let record = std::fs::read(&lock).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        format!("files {names:?}, record {record:?}, {:?}", self.outcome)
    }
}

impl Drop for Supervisor<'_> {
    fn drop(&mut self) {
        for worker in &self.crew {
            let _ = kill_process_group(worker.group(), Signal::KILL);
            worker.reap();
        }
    }
}

fn random_sleep(microseconds: impl std::ops::RangeBounds<u64>) {
    std::thread::sleep(Duration::from_micros(fastrand::u64(microseconds)));
}
