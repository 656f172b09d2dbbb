//! The processes of the clients: each is replaced when it is killed.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};

use crate::client::{CALM, OVER};
use crate::history::{Hit, Reach, now};
use crate::network::within;
use crate::schedule::Fault;
use crate::stage::Stage;

/// How a client is started.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) client: usize,
    pub(crate) namespace: String,
    /// The program, and what stands before its journal.
    pub(crate) program: Vec<String>,
    /// The URL of its locks, with `{}` in the place of the name.
    pub(crate) url: String,
}

struct Member {
    plan: Plan,
    child: Child,
}

pub(crate) struct Fleet {
    dir: PathBuf,
    seed: u64,
    started: AtomicU64,
    members: Mutex<Vec<Member>>,
}

impl Fleet {
    pub(crate) fn start(dir: &Path, seed: u64, plans: Vec<Plan>) -> Self {
        let fleet = Self { dir: dir.to_owned(), seed, started: AtomicU64::new(0), members: Mutex::default() };
        for plan in plans {
            let child = fleet.spawn(&plan);
            fleet.members.lock().unwrap().push(Member { plan, child });
        }
        fleet
    }

    fn spawn(&self, plan: &Plan) -> Child {
        use std::os::unix::process::CommandExt as _;
        let number = self.started.fetch_add(1, Ordering::Relaxed);
        let mut command = within(&plan.namespace, &plan.program[0]);
        command.args(&plan.program[1..]).arg(self.dir.join(format!("client-{number}.turns"))).arg(&plan.url);
        command.args([plan.client.to_string(), (self.seed ^ number).to_string()]);
        let log = File::options().create(true).append(true).open(self.dir.join("log")).unwrap();
        command.stdout(log.try_clone().unwrap()).stderr(log);
        command.process_group(0).spawn().unwrap()
    }

    /// Lets the clients know that nothing is broken any more.
    pub(crate) fn calm_down(&self) {
        File::create(self.dir.join(CALM)).unwrap();
    }

    /// Lets the clients end. Returns how many have not ended after `limit`: their waits are not served.
    pub(crate) fn end(&self, limit: Duration) -> usize {
        File::create(self.dir.join(OVER)).unwrap();
        let began = now();
        let mut members = self.members.lock().unwrap();
        let mut left = members.len();
        while left > 0 && now() - began < limit {
            std::thread::sleep(Duration::from_millis(50));
            let is_left = |member: &mut Member| match member.child.try_wait().unwrap() {
                Some(status) => {
                    assert!(status.success(), "a client has failed: {status}");
                    false
                }
                None => true,
            };
            left = members.iter_mut().map(is_left).filter(|&is_left| is_left).count();
        }
        left
    }
}

impl Member {
    fn signal(&self, signal: Signal) {
        // The group has its children too.
        let _ = kill_process_group(Pid::from_child(&self.child), signal);
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        for member in &mut *self.members.lock().unwrap() {
            member.signal(Signal::KILL);
            let _ = member.child.wait();
        }
    }
}

impl Stage for &Fleet {
    fn begin(&mut self, fault: Fault, target: usize) -> Hit {
        let mut members = self.members.lock().unwrap();
        let number = target % members.len();
        let member = &mut members[number];
        let mut reach = Reach::Nobody;
        match fault {
            Fault::KillClient => {
                member.signal(Signal::KILL);
                member.child.wait().unwrap();
                member.child = self.spawn(&member.plan);
            }
            _ => {
                member.signal(Signal::STOP);
                reach = Reach::Client(number);
            }
        }
        Hit { what: format!("client {number}"), reach }
    }

    fn end(&mut self, fault: Fault, target: usize) {
        let members = self.members.lock().unwrap();
        if fault == Fault::StopClient {
            members[target % members.len()].signal(Signal::CONT);
        }
    }
}
