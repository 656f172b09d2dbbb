//! Where faults are made: the lanes run side by side, so that the faults of one meet those of the others.

use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::history::{Event, Hit, Reach, now};
use crate::network::{Network, within};
use crate::schedule::{Fault, Step};

/// For how long answers come late before none come.
const DYING: Duration = Duration::from_secs(4);

pub(crate) trait Stage {
    /// Makes a fault. Returns what it has hit.
    fn begin(&mut self, fault: Fault, target: usize) -> Hit;

    /// Mends it.
    fn end(&mut self, fault: Fault, target: usize);
}

/// Makes one fault after another.
pub(crate) fn act(stage: &mut dyn Stage, steps: &[Step], events: &Mutex<Vec<Event>>) {
    let start = Instant::now();
    for &Step { at, lasts, fault, target } in steps {
        std::thread::sleep(at.saturating_sub(start.elapsed()));
        let began = now();
        let hit = stage.begin(fault, target);
        let done = now();
        // It counts from now on, also while it lasts.
        let place = {
            let mut events = events.lock().unwrap();
            events.push(Event { fault, hit, began, done, ended: Duration::MAX });
            events.len() - 1
        };
        std::thread::sleep(lasts);
        stage.end(fault, target);
        events.lock().unwrap()[place].ended = now();
    }
}

/// The hosts: first those of servers and what is between, then those of clients.
pub(crate) struct Wires<'a> {
    pub(crate) network: &'a Network,
    pub(crate) servers: usize,
    pub(crate) clients: usize,
}

impl Wires<'_> {
    fn pairs(&self, fault: Fault, target: usize) -> Vec<(usize, usize)> {
        let client = self.servers + target % self.clients;
        let one = target % self.servers;
        let servers = 0..self.servers;
        let to_servers = servers.clone().map(|server| (client, server));
        let from_servers = servers.clone().map(|server| (server, client));
        match fault {
            Fault::CutClient | Fault::DyingLink => to_servers.chain(from_servers).collect(),
            Fault::SilenceClient => to_servers.collect(),
            Fault::DeafenClient => from_servers.collect(),
            Fault::CutOne => vec![(client, one), (one, client)],
            Fault::CutServer => servers.filter(|&other| other != one).flat_map(|it| [(it, one), (one, it)]).collect(),
            _ => unreachable!("it cuts nothing"),
        }
    }

    /// `on`: whether the fault begins.
    fn shape(&self, fault: Fault, target: usize, on: bool) {
        const LOSS: &str = "INPUT -m statistic --mode random --probability 0.25 -j DROP";
        let host = target % (self.servers + self.clients);
        let client = self.servers + target % self.clients;
        let (namespace, command) = match (fault, on) {
            (Fault::SlowHost, true) => (
                self.network.namespace(host),
                "tc qdisc add dev eth0 root tbf rate 256kbit burst 3kb latency 400ms".into(),
            ),
            (Fault::SlowHost, false) => (self.network.namespace(host), "tc qdisc del dev eth0 root".into()),
            (Fault::DyingLink, true) => (
                self.network.bridge(),
                format!("tc qdisc add dev to{client} root tbf rate 64kbit mpu 1000 burst 2kb latency 2200ms"),
            ),
            (Fault::DyingLink, false) => (self.network.bridge(), format!("tc qdisc del dev to{client} root")),
            (_, true) => (self.network.namespace(host), format!("iptables -w -A {LOSS}")),
            (_, false) => (self.network.namespace(host), format!("iptables -w -D {LOSS}")),
        };
        let (program, arguments) = command.split_once(' ').unwrap();
        run(within(&namespace, program).args(arguments.split(' ')));
    }
}

pub(crate) fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
}

impl Stage for Wires<'_> {
    fn begin(&mut self, fault: Fault, target: usize) -> Hit {
        match fault {
            Fault::SlowHost | Fault::LossyHost => {
                self.shape(fault, target, true);
                let host = target % (self.servers + self.clients);
                let reach = host.checked_sub(self.servers).map_or(Reach::Everybody, Reach::Host);
                Hit { what: format!("host {host}"), reach }
            }
            Fault::DyingLink => {
                self.shape(fault, target, true);
                std::thread::sleep(DYING);
                self.pairs(fault, target).iter().for_each(|&(from, to)| self.network.lose(from, to));
                let client = target % self.clients;
                Hit { what: format!("clients' host {client}"), reach: Reach::Host(client) }
            }
            _ => {
                let pairs = self.pairs(fault, target);
                pairs.iter().for_each(|&(from, to)| self.network.lose(from, to));
                let reach = match fault {
                    Fault::CutServer => Reach::Everybody,
                    _ => Reach::Host(target % self.clients),
                };
                Hit { what: format!("{pairs:?}"), reach }
            }
        }
    }

    fn end(&mut self, fault: Fault, target: usize) {
        match fault {
            Fault::SlowHost | Fault::LossyHost => self.shape(fault, target, false),
            Fault::DyingLink => {
                self.shape(fault, target, false);
                self.pairs(fault, target).iter().for_each(|&(from, to)| self.network.pass(from, to));
            }
            _ => self.pairs(fault, target).iter().for_each(|&(from, to)| self.network.pass(from, to)),
        }
    }
}
