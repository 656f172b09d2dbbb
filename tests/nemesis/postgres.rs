//! A primary of PostgreSQL with a standby, and what may be between it and its clients.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::history::{Hit, LOCKS, Reach};
use crate::network::{Network, within};
use crate::program::{Program, haproxy, until_it_listens};
use crate::schedule::Fault;
use crate::server::{Server, key, programs, unprivileged, write_for_unprivileged};
use crate::setting::Servers;
use crate::stage::{Stage, run};

pub(crate) const SETUPS: [&str; 3] = ["direct", "pgbouncer", "haproxy"];

/// The hosts of the primary, of the standby, and of what is between.
pub(crate) const HOSTS: usize = 3;

const BETWEEN: usize = 2;

const PROXY_PORT: u16 = 6432;

/// It gives silent clients up early, and writes late what nobody waits for, if it is not told otherwise.
const CONFIGURATION: &str = "max_connections = 200\nfsync = off\nwal_writer_delay = 10s\nwal_keep_size = 64\ntcp_keepalives_idle = 1\n\
                             tcp_keepalives_interval = 1\ntcp_keepalives_count = 1\ntcp_user_timeout = 500\n\
                             client_connection_check_interval = 100";

pub(crate) struct Postgres {
    primary: Server,
    /// Only where clients know both.
    standby: Option<Server>,
    /// The namespaces of the primary and of the standby.
    hosts: [String; 2],
    proxy: Option<Program>,
}

pub(crate) fn start(setup: &str, dir: &Path, network: &Network) -> Postgres {
    let mut primary = Server::prepare(&network.address(0));
    primary.configure(CONFIGURATION);
    let hosts = [network.namespace(0), network.namespace(1)];
    // As guides for high availability say. Then the kernel gives an answer up after 3 s.
    for host in &hosts {
        run(within(host, "sysctl").args(["-qw", "net.ipv4.tcp_retries2=3"]));
    }
    primary.run_in(&hosts[0]);
    let between = network.namespace(BETWEEN);
    let proxy = match setup {
        "pgbouncer" => Some(pgbouncer(&between, dir, &primary)),
        "haproxy" => Some(haproxy(&between, dir, PROXY_PORT, &[primary.host()])),
        _ => None,
    };
    let standby = proxy.is_none().then(|| {
        let mut standby = primary.copy_for_standby(&network.address(1), crate::server::free_port());
        standby.run_in(&hosts[1]);
        standby
    });
    if proxy.is_some() {
        until_it_listens(&between, PROXY_PORT);
    }
    Postgres { primary, standby, hosts, proxy }
}

fn pgbouncer(host: &str, dir: &Path, server: &Server) -> Program {
    let [users, file, log] = ["users", "pgbouncer.ini", "pgbouncer.log"].map(|name| dir.join(name));
    write_for_unprivileged(&users, "\"postgres\" \"\"\n");
    let text = format!(
        "[databases]\n* = host={} port={}\n[pgbouncer]\nlisten_addr = *\nlisten_port = {PROXY_PORT}\nunix_socket_dir =\n\
         auth_type = trust\nauth_file = {}\npool_mode = session\ndefault_pool_size = 150\ntcp_user_timeout = 12000\nlogfile = {}\n",
        server.address(),
        server.port,
        users.display(),
        log.display(),
    );
    write_for_unprivileged(&log, "");
    write_for_unprivileged(&file, &text);
    let user = "setpriv --clear-groups --reuid=65534 --regid=65534";
    Program::start(host, &format!("{user} /usr/sbin/pgbouncer -q {}", file.display()))
}

/// The process may have ended meanwhile.
fn signal(signal: &str, process: &str) {
    let _ = Command::new("kill").args([signal, process]).output().unwrap();
}

impl Postgres {
    /// What the administrator's psql prints, if it succeeds.
    fn ask(&self, sql: &str) -> Option<String> {
        let mut psql = unprivileged(programs().join("psql"));
        psql.arg("-h").arg(self.primary.dir()).args([
            "-p",
            &self.primary.port.to_string(),
            "-U",
            "postgres",
            "-Atqc",
            sql,
        ]);
        let output = psql.env("PGCONNECT_TIMEOUT", "2").output().unwrap();
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
    }

    fn for_holder(&self, function: &str, lock: &str) -> Option<String> {
        self.ask(&format!(
            "SELECT {function}(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted \
             AND (classid::bigint << 32 | objid::bigint) = {}",
            key(lock)
        ))
    }

    /// The processes of the primary, the first one first. There are none if it has ended.
    fn processes(&self) -> Vec<String> {
        let file = fs::read_to_string(self.primary.data().join("postmaster.pid")).unwrap_or_default();
        let Some(first) = file.lines().next() else { return Vec::new() };
        // Somebody else may have the number of one that has ended.
        let words = fs::read(Path::new("/proc").join(first).join("cmdline")).unwrap_or_default();
        if !String::from_utf8_lossy(&words).contains(self.primary.data().to_str().unwrap()) {
            return Vec::new();
        }
        let others = Command::new("pgrep").args(["-P", first]).output().unwrap().stdout;
        let others = String::from_utf8(others).unwrap();
        [first].into_iter().chain(others.lines()).map(str::to_owned).collect()
    }

    /// Stops all of them.
    fn stop(&self) -> Vec<String> {
        // The first one begins no others then.
        self.processes().first().inspect(|first| signal("-STOP", first));
        let processes = self.processes();
        processes.iter().for_each(|process| signal("-STOP", process));
        processes
    }

    /// Returns when none of them is left.
    fn kill(&self) {
        for process in self.stop().iter().rev() {
            signal("-KILL", process);
            let command = Path::new("/proc").join(process).join("cmdline");
            while fs::read(&command).is_ok_and(|words| !words.is_empty()) {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }

    /// As a full disk: no process of the primary can write behind the first byte of a file.
    fn limit_files(&self) {
        for process in self.processes() {
            let _ = Command::new("prlimit").args(["--fsize=1", "--pid", &process]).output().unwrap();
        }
    }

    /// The standby takes the place of the primary, which gets no new one yet. Returns the old one.
    fn promote(&mut self) -> Server {
        let standby = self.standby.take().expect("a standby");
        standby.promote();
        self.hosts.swap(0, 1);
        std::mem::replace(&mut self.primary, standby)
    }

    fn make_standby_of(&mut self, old: Server) {
        let (address, port) = (old.address().to_owned(), old.port);
        drop(old);
        let mut standby = self.primary.copy_for_standby(&address, port);
        standby.run_in(&self.hosts[1]);
        self.standby = Some(standby);
    }
}

impl Stage for Postgres {
    fn begin(&mut self, fault: Fault, target: usize) -> Hit {
        let lock = LOCKS[target % LOCKS.len()];
        match fault {
            Fault::RestartServer => {
                self.primary.begin_stop("fast");
                self.primary.has_stopped();
                self.primary.run_in(&self.hosts[0].clone());
            }
            Fault::CrashServer => self.primary.crash(),
            Fault::FillDisk => self.limit_files(),
            Fault::StopServer => drop(self.stop()),
            Fault::Terminate => {
                let _ = self.for_holder("pg_terminate_backend", lock);
                return Hit { what: lock.into(), reach: Reach::Nobody };
            }
            Fault::Cancel => _ = self.for_holder("pg_cancel_backend", lock),
            Fault::FailOver => {
                self.primary.crash();
                let old = self.promote();
                self.make_standby_of(old);
            }
            Fault::PromoteBeside => {
                let old = self.promote();
                std::thread::sleep(Duration::from_secs(1));
                self.make_standby_of(old);
            }
            _ => return self.proxy.as_mut().expect("a proxy").begin(fault),
        }
        let reach = if fault == Fault::StopServer { Reach::Everybody } else { Reach::Nobody };
        Hit { what: "server".into(), reach }
    }

    fn end(&mut self, fault: Fault, _target: usize) {
        match fault {
            Fault::CrashServer => self.primary.run_in(&self.hosts[0].clone()),
            Fault::FillDisk => {
                self.kill();
                self.primary.has_ended();
                self.primary.run_in(&self.hosts[0].clone());
            }
            Fault::StopServer => self.processes().iter().for_each(|process| signal("-CONT", process)),
            Fault::KillProxy | Fault::StopProxy => self.proxy.as_mut().expect("a proxy").end(fault),
            _ => {}
        }
    }
}

impl Servers for Postgres {
    fn faults(&self) -> Vec<Fault> {
        let between = match self.proxy {
            Some(_) => [Fault::KillProxy, Fault::StopProxy],
            None => [Fault::FailOver, Fault::PromoteBeside],
        };
        let others = [
            Fault::RestartServer,
            Fault::CrashServer,
            Fault::FillDisk,
            Fault::StopServer,
            Fault::Terminate,
            Fault::Terminate,
            Fault::Cancel,
        ];
        [&others[..], &between].concat()
    }

    fn administrator(&self) -> Option<(Box<dyn Stage + Send>, Vec<Fault>)> {
        None
    }

    /// Two thirds of the clients come through the proxy.
    fn url(&self, client: usize, network: &Network) -> String {
        let at = match (&self.proxy, &self.standby) {
            (Some(_), _) if client % 3 > 0 => format!("{}:{PROXY_PORT}", network.address(BETWEEN)),
            (_, Some(standby)) => format!("{},{}", self.primary.host(), standby.host()),
            _ => self.primary.host(),
        };
        format!("postgres://postgres@{at}/postgres?lock={{}}&connect_timeout=3s&")
    }

    /// The numbers of the locks do not tell.
    fn held_once(&self) -> Vec<String> {
        Vec::new()
    }

    fn corruption(&self) -> Option<String> {
        None
    }

    fn left_over(&self) -> Vec<String> {
        // A pool keeps its sessions.
        let mut queries = vec!["SELECT 'advisory lock', objid FROM pg_locks WHERE locktype = 'advisory'"];
        if self.proxy.is_none() {
            queries.push("SELECT 'session', pid, query FROM pg_stat_activity WHERE application_name <> 'psql' AND backend_type = 'client backend'");
        }
        let began = Instant::now();
        let mut left = Vec::new();
        for query in queries {
            loop {
                match self.ask(query) {
                    Some(answer) => break left.extend(answer.lines().map(str::to_owned)),
                    None => assert!(began.elapsed() < Duration::from_secs(60), "psql fails"),
                }
            }
        }
        left
    }
}
