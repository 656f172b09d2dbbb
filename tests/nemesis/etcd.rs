//! A cluster of etcd, each member and each group of clients on a host of its own.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::cluster::{Cluster, Settings};
use crate::history::{Hit, LOCKS, ONCE, Reach};
use crate::network::{Network, within};
use crate::nginx;
use crate::program::{Program, haproxy, until_it_listens};
use crate::schedule::Fault;
use crate::setting::Servers;
use crate::stage::Stage;

pub(crate) const SETUPS: [&str; 6] = ["three", "five", "access", "grpc-proxy", "nginx", "haproxy"];

const PROXY_PORT: u16 = 2390;

/// The cluster has so much space. `FillSpace` fills it.
const SPACE: usize = 24 << 20;

pub(crate) struct Etcd {
    cluster: Cluster,
    members: usize,
    proxy: Option<Program>,
    has_users: bool,
    /// The administrator's host, which no fault cuts off.
    desk: String,
    down: Vec<usize>,
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
    let desk = network.namespace(desk);
    let etcd = Etcd { cluster, members, proxy, has_users: setup == "access", desk, down: Vec::new() };
    if etcd.has_users {
        etcd.add_users();
    }
    etcd
}

/// From the fields that etcdctl prints.
fn revision(fields: &str) -> Option<u64> {
    fields.lines().find_map(|line| line.strip_prefix("\"Revision\" : "))?.parse().ok()
}

impl Etcd {
    /// What the administrator's command prints, if it succeeds.
    fn ask(&self, arguments: &str) -> Option<String> {
        let endpoints: Vec<String> = (0..self.members).map(|member| self.cluster.endpoint(member)).collect();
        self.ask_at(&endpoints.join(","), arguments)
    }

    fn ask_at(&self, endpoints: &str, arguments: &str) -> Option<String> {
        let mut command = within(&self.desk, "etcdctl");
        command.env("ETCDCTL_API", "3").args(["--endpoints", endpoints, "--command-timeout=4s", "--dial-timeout=1s"]);
        if self.has_users {
            command.args(["--user", "root:root"]);
        }
        let output = command.args(arguments.split(' ')).stdin(Stdio::null()).output().unwrap();
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
    }

    fn insist(&self, arguments: &str) -> String {
        let began = Instant::now();
        loop {
            match self.ask(arguments) {
                Some(answer) => return answer,
                None => assert!(began.elapsed() < Duration::from_secs(60), "etcdctl {arguments} fails"),
            }
        }
    }

    fn add_users(&self) {
        for commands in ["user add root:root", "user add app:app", "role add app"] {
            self.cluster.ask(&commands.split(' ').collect::<Vec<_>>());
        }
        for lock in LOCKS.into_iter().chain([ONCE]) {
            self.cluster.ask(&["role", "grant-permission", "app", "readwrite", "--prefix=true", lock]);
        }
        for commands in ["user grant-role root root", "user grant-role app app", "auth enable"] {
            self.cluster.ask(&commands.split(' ').collect::<Vec<_>>());
        }
    }

    fn keys(&self, prefix: &str) -> Vec<String> {
        let keys = self.insist(&format!("get --prefix --keys-only {prefix}"));
        keys.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
    }

    /// The key of the holder of a lock.
    fn holders_key(&self, lock: &str) -> Option<String> {
        let order = "--sort-by=CREATE --order=ASCEND --limit=1 --keys-only --prefix";
        let key = self.ask(&format!("get {order} {lock}/"))?;
        Some(key.lines().next()?.to_owned()).filter(|key| !key.is_empty())
    }

    /// The number of the leader, and the ID of another member.
    fn leader(&self) -> Option<(usize, String)> {
        let (mut leader, mut other) = (None, None);
        for member in (0..self.members).filter(|member| !self.down.contains(member)) {
            let Some(status) = self.ask_at(&self.cluster.endpoint(member), "endpoint status") else { continue };
            let fields: Vec<&str> = status.trim().split(", ").collect();
            match fields[4] {
                "true" => leader = Some(member),
                _ => other = Some(fields[1].to_owned()),
            }
        }
        Some((leader?, other?))
    }

    /// All but the last revision. If that one is a deletion, a member that is killed meanwhile can forget it (issue 17780 of
    /// etcd).
    fn compact(&self) -> Option<()> {
        let last = revision(&self.ask("get x -w fields")?)?;
        self.ask(&format!("compact {}", last - 1)).map(drop)
    }

    fn fill_space(&self) {
        let file = std::env::temp_dir().join(format!("filler-{}", std::process::id()));
        std::fs::write(&file, "x".repeat(1 << 20)).unwrap();
        for number in 0..SPACE >> 19 {
            let put = format!("exec etcdctl --endpoints {} --command-timeout=4s", self.cluster.endpoint(number % 3));
            let user = if self.has_users { "--user root:root" } else { "" };
            let mut command = within(&self.desk, "sh");
            command.args(["-c", &format!("{put} {user} put filler < {}", file.display())]).env("ETCDCTL_API", "3");
            let output = command.stdin(Stdio::null()).output().unwrap();
            if String::from_utf8_lossy(&output.stderr).contains("space exceeded") {
                break;
            }
        }
        std::fs::remove_file(file).unwrap();
    }

    fn make_space(&self) {
        self.insist("del filler");
        let began = Instant::now();
        while self.compact().is_none() {
            assert!(began.elapsed() < Duration::from_secs(60), "no compaction");
        }
        for member in 0..self.members {
            while self.ask_at(&self.cluster.endpoint(member), "defrag").is_none() {
                assert!(began.elapsed() < Duration::from_secs(60), "no defragmentation");
            }
        }
        self.insist("alarm disarm");
    }
}

impl Stage for Etcd {
    fn begin(&mut self, fault: Fault, target: usize) -> Hit {
        let (member, lock) = (target % self.members, LOCKS[target % LOCKS.len()]);
        match fault {
            Fault::KillMember => self.down = vec![member],
            Fault::KillMajority => self.down = (0..=self.members / 2).map(|it| (member + it) % self.members).collect(),
            Fault::StopMember => {
                self.down = vec![member];
                self.cluster.signal(member, Signal::STOP);
            }
            Fault::MoveLeader => {
                let moved = self.leader().and_then(|(leader, other)| {
                    self.ask_at(&self.cluster.endpoint(leader), &format!("move-leader {other}"))
                });
                return Hit { what: format!("{moved:?}"), reach: Reach::Nobody };
            }
            Fault::DeleteKey => {
                let key = self.holders_key(lock);
                key.map(|key| self.ask(&format!("del {key}")));
                return Hit { what: lock.to_owned(), reach: Reach::Nobody };
            }
            Fault::RevokeLease => {
                let key = self.holders_key(lock).unwrap_or_default();
                key.rsplit_once('/').map(|(_, lease)| self.ask(&format!("lease revoke {lease}")));
            }
            Fault::RevokeRole => _ = self.ask("user revoke-role app app"),
            Fault::Compact => _ = self.compact(),
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
        match fault {
            Fault::KillMember | Fault::KillMajority => down.into_iter().for_each(|member| self.cluster.start(member)),
            Fault::StopMember => self.cluster.signal(down[0], Signal::CONT),
            Fault::RevokeRole => _ = self.insist("user grant-role app app"),
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
            Fault::MoveLeader,
            Fault::DeleteKey,
            Fault::RevokeLease,
            Fault::Compact,
            Fault::FillSpace,
        ];
        if self.proxy.is_some() {
            faults.extend([Fault::KillProxy, Fault::StopProxy, Fault::KillProxy, Fault::StopProxy]);
        }
        if self.has_users {
            faults.extend([Fault::RevokeRole, Fault::RevokeRole]);
        }
        faults
    }

    /// Half of the clients come through the proxy.
    fn url(&self, client: usize, network: &Network) -> String {
        let at = match self.proxy.is_some() && client % 2 == 0 {
            true => format!("{}:{PROXY_PORT}", network.address(self.members)),
            false => self.cluster.endpoints(),
        };
        let user = if self.has_users { "app:app@" } else { "" };
        format!("etcd://{user}{at}/{{}}?connect_timeout=3s&")
    }

    fn held_once(&self) -> Vec<String> {
        self.keys(ONCE)
    }

    /// The members have different data at the same revision.
    fn corruption(&self) -> Option<String> {
        let revision = revision(&self.insist("get x -w fields"))?;
        let mut hashes = Vec::new();
        for member in 0..self.members {
            let answer = self.ask_at(&self.cluster.endpoint(member), &format!("endpoint hashkv --rev={revision}"));
            // One that is behind does not have the revision yet.
            hashes.push(answer?.trim().rsplit(", ").next()?.to_owned());
        }
        let is_same = hashes.iter().all(|hash| *hash == hashes[0]);
        (!is_same).then(|| format!("hashes of the members at revision {revision}: {hashes:?}"))
    }

    fn left_over(&self) -> Vec<String> {
        let mut left: Vec<String> = LOCKS.into_iter().chain([ONCE]).flat_map(|lock| self.keys(lock)).collect();
        left.extend(self.insist("lease list").lines().skip(1).map(|lease| format!("lease {lease}")));
        left
    }
}
