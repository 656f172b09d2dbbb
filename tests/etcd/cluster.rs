//! A real cluster of etcd on loopback, which ends with the process that started it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio_lockfile::LockFile;

use crate::network;
use crate::support::HANG;

/// The user "nobody": a server needs no rights.
const NOBODY: u32 = 65534;

/// A member ends when its standard input does, that is, when the process ends that started it.
const UNTIL_END_OF_INPUT: &str = r#""$@" & echo $!; read -r _; kill -9 $!; wait"#;

/// The data go with the same process.
const REMOVE_AT_END_OF_INPUT: &str = r#"read -r _; until rm -rf "$1"; do sleep 0.1; done"#;

pub(crate) struct Cluster {
    members: Vec<Member>,
    settings: Settings,
    dir: PathBuf,
    /// Removes the directory.
    janitor: Child,
}

/// How the members of a cluster are started.
#[derive(Default, Clone)]
pub(crate) struct Settings {
    /// The network namespace of each member, and its address there.
    pub(crate) networks: Vec<(String, String)>,
    /// More arguments for each member.
    pub(crate) arguments: Vec<String>,
    /// Whether clients come with TLS. Then `arguments` say with which certificate.
    pub(crate) tls: bool,
    /// With which certificate and key etcdctl comes.
    pub(crate) identity: Option<(String, String)>,
    /// Whether the members keep what they say to themselves.
    pub(crate) is_quiet: bool,
}

struct Member {
    name: String,
    host: String,
    client_port: u16,
    peer_port: u16,
    running: Option<Running>,
}

/// A program that ends with this, and with the process that started it.
pub(crate) struct Running {
    shell: Child,
    pid: i32,
}

impl Running {
    /// `arguments` begin with the program.
    pub(crate) fn start(arguments: &[&str]) -> Self {
        let mut command = Command::new("sh");
        command.args(["-c", UNTIL_END_OF_INPUT, "program"]).args(arguments);
        Self::of(&mut command)
    }

    fn of(command: &mut Command) -> Self {
        let mut shell = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(shell.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Self { shell, pid: line.trim().parse().unwrap() }
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(rustix::process::Pid::from_raw(self.pid).unwrap(), signal).unwrap();
    }
}

impl Cluster {
    pub(crate) fn of(members: usize) -> Self {
        Self::with(members, Settings::default())
    }

    pub(crate) fn with(members: usize, settings: Settings) -> Self {
        let dir = TempDir::new().unwrap().keep();
        let mut janitor = Command::new("sh");
        janitor.args(["-c", REMOVE_AT_END_OF_INPUT, "janitor"]).arg(&dir).stdin(Stdio::piped());
        let janitor = janitor.spawn().unwrap();
        if rustix::process::geteuid().is_root() {
            chown(&dir, Some(NOBODY), Some(NOBODY)).unwrap();
        }
        let members = (0..members).map(|number| Member::new(number, &settings)).collect();
        let mut cluster = Self { members, settings, dir, janitor };
        for number in 0..cluster.members.len() {
            cluster.start(number);
        }
        cluster.wait_until_healthy();
        cluster
    }

    pub(crate) fn start(&mut self, number: usize) {
        let peers: Vec<String> =
            self.members.iter().map(|member| format!("{}={}", member.name, member.peer_url())).collect();
        let member = &self.members[number];
        let client_url = format!("{}://{}:{}", self.scheme(), member.host, member.client_port);
        let mut command = match self.settings.networks.get(number) {
            Some((namespace, _)) => network::within(namespace, "sh"),
            None => Command::new("sh"),
        };
        command
            .args(["-c", UNTIL_END_OF_INPUT, "member", "etcd", "--name", &member.name])
            .arg("--data-dir")
            .arg(self.dir.join(&member.name))
            .args(["--listen-client-urls", &client_url, "--advertise-client-urls", &client_url])
            .args(["--listen-peer-urls", &member.peer_url(), "--initial-advertise-peer-urls", &member.peer_url()])
            .args(["--initial-cluster", &peers.join(","), "--initial-cluster-token", &self.token()])
            // The shortest lease that a server grants is one and a half election timeouts.
            .args([
                "--heartbeat-interval",
                "50",
                "--election-timeout",
                "500",
                "--logger",
                "zap",
                "--log-level",
                "error",
            ])
            .args(&self.settings.arguments)
            .current_dir(&self.dir);
        if self.settings.is_quiet {
            command.stderr(Stdio::null());
        }
        if rustix::process::geteuid().is_root() && self.settings.networks.is_empty() {
            command.uid(NOBODY).gid(NOBODY);
        }
        self.members[number].running = Some(Running::of(&mut command));
    }

    fn token(&self) -> String {
        self.dir.file_name().unwrap().to_str().unwrap().to_owned()
    }

    fn scheme(&self) -> &'static str {
        if self.settings.tls { "https" } else { "http" }
    }

    fn wait_until_healthy(&self) {
        let began = Instant::now();
        while !self.etcdctl(&["endpoint", "health"]).status.success() {
            assert!(began.elapsed() < HANG, "the cluster does not become healthy");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until each member has a leader.
    pub(crate) fn wait_until_all_are_healthy(&self) {
        let began = Instant::now();
        for number in 0..self.members.len() {
            while !self.etcdctl_at(&[number], &["endpoint", "health"]).output().unwrap().status.success() {
                assert!(began.elapsed() < HANG, "member {number} does not become healthy");
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }

    /// Kills a member as a power cut does.
    pub(crate) fn kill(&mut self, number: usize) {
        self.members[number].running = None;
    }

    pub(crate) fn signal(&self, number: usize, signal: rustix::process::Signal) {
        self.members[number].running.as_ref().expect("it runs").signal(signal);
    }

    /// The disk of a member does not answer until the returned process ends. The member writes, so that it waits for it.
    pub(crate) fn let_disk_hang(&self, number: usize) -> Hang {
        let pid = self.members[number].running.as_ref().expect("it runs").pid.to_string();
        let mut strace = Command::new("strace");
        strace.args(["-f", "-e", "trace=fdatasync", "-e", "inject=fdatasync:delay_enter=600000000", "-p", &pid]);
        let mut strace = strace.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().expect("strace is installed");
        let mut lines = BufReader::new(strace.stderr.take().unwrap()).lines();
        let attached = lines.next().expect("strace attaches").unwrap();
        assert!(attached.contains("attached"), "{attached}");
        let mut put = self.etcdctl_at(&[number], &["put", "filler", "x"]);
        let put = put.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // It also tells of new threads.
        let is_begun = lines.any(|line| line.unwrap().contains("fdatasync"));
        assert!(is_begun, "strace goes on");
        // Else strace would wait for a reader.
        std::thread::spawn(move || lines.for_each(drop));
        Hang([strace, put])
    }

    /// `host:port` of each member, with commas.
    pub(crate) fn endpoints(&self) -> String {
        let endpoints: Vec<String> = (0..self.members.len()).map(|number| self.endpoint(number)).collect();
        endpoints.join(",")
    }

    pub(crate) fn endpoint(&self, number: usize) -> String {
        let member = &self.members[number];
        format!("{}:{}", member.host, member.client_port)
    }

    /// The URL of a lock with a short lease. `more` stands behind it.
    pub(crate) fn url(&self, name: &str, more: &str) -> String {
        format!("etcd://{}/{name}?ttl=3s{more}", self.endpoints())
    }

    pub(crate) fn lock(&self, name: &str) -> LockFile {
        LockFile::open(&self.url(name, "")).unwrap()
    }

    /// A lock with a lease that the election of a leader does not use up, not even one of two rounds.
    pub(crate) fn lasting_lock(&self, name: &str) -> LockFile {
        LockFile::open(&self.lasting_url(name)).unwrap()
    }

    pub(crate) fn lasting_url(&self, name: &str) -> String {
        format!("etcd://{}/{name}?ttl=6s", self.endpoints())
    }

    pub(crate) fn etcdctl(&self, arguments: &[&str]) -> Output {
        self.etcdctl_command(arguments).output().unwrap()
    }

    pub(crate) fn etcdctl_command(&self, arguments: &[&str]) -> Command {
        self.etcdctl_at(&(0..self.members.len()).collect::<Vec<_>>(), arguments)
    }

    /// etcdctl for these members only.
    fn etcdctl_at(&self, members: &[usize], arguments: &[&str]) -> Command {
        let mut command = match self.settings.networks.first() {
            Some((namespace, _)) => network::within(namespace, "etcdctl"),
            None => Command::new("etcdctl"),
        };
        let endpoint = |&number: &usize| format!("{}://{}", self.scheme(), self.endpoint(number));
        let endpoints: Vec<String> = members.iter().map(endpoint).collect();
        command.env("ETCDCTL_API", "3").arg("--endpoints").arg(endpoints.join(","));
        if self.settings.tls {
            command.arg("--insecure-skip-tls-verify");
        }
        if let Some((certificate, key)) = &self.settings.identity {
            command.args(["--cert", certificate, "--key", key]);
        }
        command.args(arguments);
        command
    }

    /// What etcdctl prints, which succeeds.
    pub(crate) fn ask(&self, arguments: &[&str]) -> String {
        let output = self.etcdctl(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// The keys of a lock.
    pub(crate) fn keys(&self, name: &str) -> Vec<String> {
        let printed = self.ask(&["get", "--prefix", "--keys-only", &format!("{name}/")]);
        printed.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
    }

    /// The leases of the cluster, in hexadecimal.
    pub(crate) fn leases(&self) -> Vec<String> {
        self.ask(&["lease", "list"]).lines().skip(1).map(str::to_owned).collect()
    }

    /// How many messages the members have received from clients since they were started.
    pub(crate) fn messages(&self) -> u64 {
        (0..self.members.len()).filter_map(|number| messages(&self.endpoint(number))).sum()
    }

    /// The number of the member that leads.
    pub(crate) fn leader(&self) -> usize {
        let began = Instant::now();
        loop {
            for number in (0..self.members.len()).filter(|&number| self.members[number].running.is_some()) {
                let output = self.etcdctl_at(&[number], &["endpoint", "status"]).output().unwrap();
                if String::from_utf8_lossy(&output.stdout).split(", ").nth(4) == Some("true") {
                    return number;
                }
            }
            assert!(began.elapsed() < HANG, "nobody leads");
        }
    }

    /// Another member leads from now on.
    pub(crate) fn move_leader(&self) {
        let leader = self.leader();
        let next = (leader + 1) % self.members.len();
        let status = self.etcdctl_at(&[next], &["endpoint", "status"]).output().unwrap();
        let id = String::from_utf8(status.stdout).unwrap().split(", ").nth(1).unwrap().to_owned();
        let moved = self.etcdctl_at(&[leader], &["move-leader", &id]).output().unwrap();
        assert!(moved.status.success(), "{}", String::from_utf8_lossy(&moved.stderr));
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }
}

/// As long as this is there, the disk of a member hangs.
pub(crate) struct Hang([Child; 2]);

impl Drop for Hang {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Member {
    fn new(number: usize, settings: &Settings) -> Self {
        let name = format!("m{number}");
        let (host, client_port, peer_port) = match settings.networks.get(number) {
            Some((_, address)) => (address.clone(), 2379, 2380),
            None => ("127.0.0.1".to_owned(), free_port(), free_port()),
        };
        Self { name, host, client_port, peer_port, running: None }
    }

    fn peer_url(&self) -> String {
        format!("http://{}:{}", self.host, self.peer_port)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.members.clear();
        drop(self.janitor.stdin.take());
        let _ = self.janitor.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        let _ = self.shell.wait();
    }
}

/// From the metrics of a member; `None` if nobody is there.
fn messages(endpoint: &str) -> Option<u64> {
    let mut stream = TcpStream::connect(endpoint).ok()?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").ok()?;
    let mut metrics = String::new();
    stream.read_to_string(&mut metrics).ok()?;
    let counts = metrics.lines().filter(|line| line.starts_with("grpc_server_msg_received_total"));
    Some(counts.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() as u64).sum())
}

/// A port that is free, and that the system gives to no connection by itself.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let port = 10_000 + (std::process::id() * 32 + NEXT.fetch_add(1, Ordering::Relaxed)) % 20_000;
        let port = port.try_into().unwrap();
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
