//! A cluster of etcd, each member and each group of clients on a host of its own.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::cluster::{Cluster, Hang, Settings};
use crate::desk::{Desk, USERS, revision};
use crate::history::{Hit, LOCKS, ONCE, Reach};
use crate::network::{Network, within};
use crate::nginx;
use crate::program::{Program, haproxy, until_it_listens};
use crate::schedule::Fault;
use crate::setting::{Servers, is_quiet};
use crate::stage::Stage;

pub(crate) const SETUPS: [&str; 6] = ["three", "five", "access", "grpc-proxy", "nginx", "haproxy"];

const PROXY_PORT: u16 = 2390;

/// The cluster has so much space. `FillSpace` fills it.
const SPACE: usize = 24 << 20;

pub(crate) struct Etcd {
    cluster: Cluster,
    members: usize,
    proxy: Option<Program>,
    desk: Desk,
    down: Vec<usize>,
    hang: Option<Hang>,
}

pub(crate) fn members(setup: &str) -> usize {
    if setup == "five" { 5 } else { 3 }
}

/// The members are on the first hosts, then comes the proxy. The administrator is on the last one.
pub(crate) fn start(setup: &str, dir: &Path, network: &Network, desk: usize) -> Etcd {
    let members = members(setup);
    // The cheapest hash of passwords: a login costs a tenth of a second of a core otherwise.
    let arguments = vec![format!("--quota-backend-bytes={SPACE}"), "--bcrypt-cost=4".into()];
    let networks = network.members(members);
    let cluster = Cluster::with(members, Settings { networks, arguments, is_quiet: true, ..Settings::default() });
    let host = network.namespace(members);
    let endpoints: Vec<String> = (0..members).map(|member| cluster.endpoint(member)).collect();
    let proxy = match setup {
        "grpc-proxy" => Some(Program::start(
            &host,
            &format!("etcd grpc-proxy start --endpoints={} --listen-addr=:{PROXY_PORT}", endpoints.join(",")),
        )),
        "nginx" => {
            let command = nginx::command(dir, &PROXY_PORT.to_string(), endpoints.iter().map(String::as_str));
            Some(Program::start(&host, &command.join(" ")))
        }
        "haproxy" => Some(haproxy(&host, dir, PROXY_PORT, &endpoints)),
        _ => None,
    };
    if proxy.is_some() {
        until_it_listens(&host, PROXY_PORT);
    }
    let desk = Desk { namespace: network.namespace(desk), endpoints, has_users: setup == "access" };
    let etcd = Etcd { cluster, members, proxy, desk, down: Vec::new(), hang: None };
    if etcd.desk.has_users {
        etcd.add_users();
    }
    etcd
}

impl Etcd {
    fn add_users(&self) {
        for commands in ["user add root:root", "user add app:app", "user add other:other", "role add app"] {
            self.cluster.ask(&commands.split(' ').collect::<Vec<_>>());
        }
        for lock in LOCKS.into_iter().chain([ONCE]) {
            self.cluster.ask(&["role", "grant-permission", "app", "readwrite", "--prefix=true", lock]);
        }
        for commands in
            ["user grant-role root root", "user grant-role app app", "user grant-role other app", "auth enable"]
        {
            self.cluster.ask(&commands.split(' ').collect::<Vec<_>>());
        }
    }

    fn fill_space(&self) {
        let file = std::env::temp_dir().join(format!("filler-{}", std::process::id()));
        std::fs::write(&file, "x".repeat(1 << 20)).unwrap();
        for number in 0..SPACE >> 19 {
            let put = format!("exec etcdctl --endpoints {} --command-timeout=4s", self.cluster.endpoint(number % 3));
            let user = if self.desk.has_users { "--user root:root" } else { "" };
            let mut command = within(&self.desk.namespace, "sh");
            command.args(["-c", &format!("{put} {user} put filler < {}", file.display())]).env("ETCDCTL_API", "3");
            let output = command.stdin(Stdio::null()).output().unwrap();
            if String::from_utf8_lossy(&output.stderr).contains("space exceeded") {
                break;
            }
        }
        std::fs::remove_file(file).unwrap();
    }

    fn make_space(&self) {
        self.desk.insist("del filler");
        let began = Instant::now();
        while self.desk.compact().is_none() {
            assert!(began.elapsed() < Duration::from_secs(60), "no compaction");
        }
        for member in 0..self.members {
            while self.desk.ask_at(&self.cluster.endpoint(member), "defrag").is_none() {
                assert!(began.elapsed() < Duration::from_secs(60), "no defragmentation");
            }
        }
        self.desk.insist("alarm disarm");
    }
}

impl Stage for Etcd {
    fn begin(&mut self, fault: Fault, target: usize) -> Hit {
        let member = target % self.members;
        match fault {
            Fault::KillMember => self.down = vec![member],
            Fault::KillMajority => self.down = (0..=self.members / 2).map(|it| (member + it) % self.members).collect(),
            Fault::StopMember => {
                self.down = vec![member];
                self.cluster.signal(member, Signal::STOP);
            }
            Fault::MoveLeader => {
                let moved = self.desk.leader().and_then(|(leader, other)| {
                    self.desk.ask_at(&self.cluster.endpoint(leader), &format!("move-leader {other}"))
                });
                return Hit { what: format!("{moved:?}"), reach: Reach::Nobody };
            }
            Fault::HangDisk => {
                if let Some((leader, _)) = self.desk.leader() {
                    self.down = vec![leader];
                    self.hang = Some(self.cluster.let_disk_hang(leader));
                }
            }
            Fault::Compact => _ = self.desk.compact(),
            Fault::FillSpace => self.fill_space(),
            _ => return self.proxy.as_mut().expect("a proxy").begin(fault),
        }
        if matches!(fault, Fault::KillMember | Fault::KillMajority) {
            self.down.clone().into_iter().for_each(|member| self.cluster.kill(member));
        }
        // Those that are down answer nobody.
        let reach = if self.down.is_empty() { Reach::Nobody } else { Reach::Everybody };
        Hit { what: format!("{:?}", self.down), reach }
    }

    fn end(&mut self, fault: Fault, _target: usize) {
        let down = std::mem::take(&mut self.down);
        self.hang = None;
        match fault {
            Fault::KillMember | Fault::KillMajority => down.into_iter().for_each(|member| self.cluster.start(member)),
            Fault::StopMember => self.cluster.signal(down[0], Signal::CONT),
            Fault::FillSpace => self.make_space(),
            Fault::KillProxy | Fault::StopProxy => self.proxy.as_mut().expect("a proxy").end(fault),
            _ => {}
        }
    }
}

impl Servers for Etcd {
    fn faults(&self) -> Vec<Fault> {
        let mut faults = vec![
            Fault::KillMember,
            Fault::KillMajority,
            Fault::StopMember,
            Fault::HangDisk,
            Fault::MoveLeader,
            Fault::Compact,
            Fault::FillSpace,
        ];
        if self.proxy.is_some() {
            faults.extend([Fault::KillProxy, Fault::StopProxy, Fault::KillProxy, Fault::StopProxy]);
        }
        faults
    }

    fn administrator(&self) -> Option<(Box<dyn Stage + Send>, Vec<Fault>)> {
        let mut faults = vec![Fault::DeleteKey, Fault::RevokeLease];
        if self.desk.has_users {
            faults.extend([Fault::RevokeRole, Fault::RevokeRole]);
        }
        Some((Box::new(self.desk.clone()), faults))
    }

    /// Half of the clients come through the proxy. Without one, those that are quiet know one member only, or come as
    /// one of two users.
    fn url(&self, client: usize, network: &Network) -> String {
        let at = match &self.proxy {
            Some(_) if client % 2 == 0 => format!("{}:{PROXY_PORT}", network.address(self.members)),
            None if is_quiet(client) && !self.desk.has_users => self.cluster.endpoint(client % self.members),
            _ => self.cluster.endpoints(),
        };
        let user = USERS[client / 2 % USERS.len()];
        let user = if self.desk.has_users { format!("{user}:{user}@") } else { String::new() };
        format!("etcd://{user}{at}/{{}}?connect_timeout=3s&")
    }

    fn held_once(&self) -> Vec<String> {
        self.desk.keys(ONCE)
    }

    /// The members have different data at the same revision.
    fn corruption(&self) -> Option<String> {
        let revision = revision(&self.desk.insist("get x -w fields"))?;
        let mut hashes = Vec::new();
        for member in 0..self.members {
            let answer = self.desk.ask_at(&self.cluster.endpoint(member), &format!("endpoint hashkv --rev={revision}"));
            // One that is behind does not have the revision yet.
            hashes.push(answer?.trim().rsplit(", ").next()?.to_owned());
        }
        let is_same = hashes.iter().all(|hash| *hash == hashes[0]);
        (!is_same).then(|| format!("hashes of the members at revision {revision}: {hashes:?}"))
    }

    fn left_over(&self) -> Vec<String> {
        let mut left: Vec<String> = LOCKS.into_iter().chain([ONCE]).flat_map(|lock| self.desk.keys(lock)).collect();
        left.extend(self.desk.insist("lease list").lines().skip(1).map(|lease| format!("lease {lease}")));
        left
    }
}
