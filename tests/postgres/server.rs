//! PostgreSQL servers of the tests' own: in a temporary folder, as an unprivileged user, on loopback.

use std::fs;
use std::io::Write as _;
use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_lockfile::{LockError, LockFile, LockGuard};
use tokio_postgres::{Client, NoTls};

use crate::support::HANG;

/// Debian's nobody and nogroup.
const NOBODY: u32 = 65534;

/// Where the newest PostgreSQL of this machine has its programs.
pub(crate) fn programs() -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").expect("PostgreSQL is installed");
    let newest = versions
        .map(|version| version.unwrap().path())
        .max_by_key(|path| path.file_name().and_then(|name| name.to_str()?.parse::<u32>().ok()));
    newest.expect("PostgreSQL is installed").join("bin")
}

/// A command that runs as an unprivileged user.
pub(crate) fn unprivileged(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    if rustix::process::geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command.current_dir("/").env("LC_ALL", "C");
    command
}

/// A shell of the unprivileged user in a network namespace.
pub(crate) fn shell_in(namespace: &str) -> Command {
    let mut shell = Command::new("ip");
    shell.args(["netns", "exec", namespace, "setpriv", "--clear-groups"]);
    shell.args([format!("--reuid={NOBODY}"), format!("--regid={NOBODY}"), "/bin/sh".into()]).current_dir("/");
    shell
}

fn give_to_unprivileged(path: &Path) {
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
}

pub(crate) fn unprivileged_dir() -> TempDir {
    let dir = TempDir::new().unwrap();
    give_to_unprivileged(dir.path());
    dir
}

/// Writes a file that the unprivileged user owns and nobody else can read.
pub(crate) fn write_for_unprivileged(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    give_to_unprivileged(path);
}

pub(crate) fn succeed(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {output:?}");
    output
}

pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Runs a server until this is dropped, or until this process ends: then the shell reads the end of its stdin.
#[derive(Debug)]
pub(crate) struct Daemon(Child);

impl Daemon {
    /// `shell` starts a shell, and `signal` ends the program. `left` is a folder that this process leaves behind, because it
    /// drops no statics.
    pub(crate) fn start(
        mut shell: Command,
        signal: &str,
        program: &str,
        arguments: &[&str],
        log: &Path,
        left: Option<&Path>,
    ) -> Self {
        const GUARD: &str = r#""$@" </dev/null & read _; kill -$SIGNAL $!; wait $!; [ -z "$LEFT" ] || rm -rf "$LEFT""#;
        let log = fs::File::create(log).unwrap();
        shell.args(["-c", GUARD, "sh", program]).args(arguments).env("SIGNAL", signal);
        shell.env("LEFT", left.unwrap_or(Path::new("")));
        let child = shell.stdin(Stdio::piped()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        Self(child)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

#[derive(Debug)]
pub(crate) struct Server {
    daemon: Option<Daemon>,
    dir: TempDir,
    pub(crate) port: u16,
    address: String,
    is_shared: bool,
}

impl Server {
    /// The server that most tests share.
    pub(crate) fn shared() -> &'static Self {
        static SHARED: OnceLock<Server> = OnceLock::new();
        SHARED.get_or_init(|| {
            let mut server = Self::prepare("127.0.0.1");
            server.is_shared = true;
            server.configure("max_connections = 300");
            server.run();
            server
        })
    }

    /// A server with more lines in its configuration.
    pub(crate) fn start(configuration: &str) -> Self {
        let mut server = Self::prepare("127.0.0.1");
        server.configure(configuration);
        server.run();
        server
    }

    /// A fresh database cluster.
    pub(crate) fn prepare(address: &str) -> Self {
        let dir = unprivileged_dir();
        let initdb = programs().join("initdb");
        let arguments = ["--username=postgres", "--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C", "-D"];
        succeed(unprivileged(initdb).args(arguments).arg(dir.path().join("data")));
        Self { daemon: None, dir, port: free_port(), address: address.to_owned(), is_shared: false }
    }

    /// Lets everybody connect from the network of the namespaces.
    fn trust_network(&self) {
        let file = fs::OpenOptions::new().append(true).open(self.data().join("pg_hba.conf"));
        file.unwrap().write_all(b"host all all 10.77.0.0/24 trust\n").unwrap();
    }

    /// Adds lines to the configuration of a server that does not run.
    pub(crate) fn configure(&self, lines: &str) {
        let file = fs::OpenOptions::new().append(true).open(self.data().join("postgresql.conf"));
        file.unwrap().write_all(format!("{lines}\n").as_bytes()).unwrap();
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Starts the server, also after it has stopped.
    pub(crate) fn run(&mut self) {
        self.run_by(unprivileged("/bin/sh"));
    }

    /// The same in a network namespace.
    pub(crate) fn run_in(&mut self, namespace: &str) {
        self.trust_network();
        self.run_by(shell_in(namespace));
    }

    fn run_by(&mut self, shell: Command) {
        let program = programs().join("postgres");
        let (data, sockets) = (self.data(), self.dir.path().to_owned());
        let arguments = [
            "-D",
            data.to_str().unwrap(),
            "-k",
            sockets.to_str().unwrap(),
            "-p",
            &self.port.to_string(),
            "-c",
            &format!("listen_addresses={}", self.address),
        ];
        let (log, left) = (self.dir.path().join("log"), self.is_shared.then_some(self.dir.path()));
        self.daemon = Some(Daemon::start(shell, "INT", program.to_str().unwrap(), &arguments, &log, left));
        self.wait_until_ready();
    }

    fn wait_until_ready(&self) {
        let began = Instant::now();
        let is_ready = || {
            let mut command = unprivileged(programs().join("pg_isready"));
            command.args(["-q", "-h", self.dir.path().to_str().unwrap(), "-p", &self.port.to_string()]);
            command.status().unwrap().success()
        };
        while !is_ready() {
            assert!(began.elapsed() < HANG, "{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Stops the server in one of the modes of pg_ctl, and does not wait for it.
    pub(crate) fn begin_stop(&self, mode: &str) {
        succeed(unprivileged(programs().join("pg_ctl")).args(["stop", "-W", "-m", mode, "-D"]).arg(self.data()));
    }

    /// Waits until a server that was told to stop has stopped.
    pub(crate) fn has_stopped(&mut self) {
        let began = Instant::now();
        while self.data().join("postmaster.pid").exists() {
            assert!(began.elapsed() < HANG, "{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
        self.has_ended();
    }

    /// To be called when its processes have ended: as long as nobody waits for them, another server takes them for
    /// living ones.
    pub(crate) fn has_ended(&mut self) {
        self.daemon = None;
    }

    /// From now on, a password is asked for on TCP.
    pub(crate) fn require_password(&self) {
        self.set_access("local all all trust\nhost all all all scram-sha-256\n");
    }

    /// Replaces the rules for who may connect, while the server runs.
    pub(crate) fn set_access(&self, rules: &str) {
        write_for_unprivileged(&self.data().join("pg_hba.conf"), rules);
        succeed(unprivileged(programs().join("pg_ctl")).args(["reload", "-D"]).arg(self.data()));
    }

    pub(crate) fn promote(&self) {
        succeed(unprivileged(programs().join("pg_ctl")).args(["promote", "-w", "-D"]).arg(self.data()));
    }

    /// Kills the server so that it can write nothing any more.
    pub(crate) fn crash(&mut self) {
        let pid = fs::read_to_string(self.data().join("postmaster.pid")).unwrap();
        let pid = pid.lines().next().unwrap();
        // The children first: the end of their parent would give them time.
        let _ = Command::new("pkill").args(["-9", "-P", pid]).status().unwrap();
        succeed(Command::new("kill").args(["-9", pid]));
        self.has_ended();
    }

    /// A standby of this server, with its own folder and port.
    pub(crate) fn standby(&self) -> Self {
        self.standby_at(&self.address, free_port())
    }

    pub(crate) fn standby_at(&self, address: &str, port: u16) -> Self {
        let mut standby = self.copy_for_standby(address, port);
        standby.run();
        standby
    }

    /// The same, not started yet. Both servers find each other in the file system, whatever is between their hosts.
    pub(crate) fn copy_for_standby(&self, address: &str, port: u16) -> Self {
        let dir = unprivileged_dir();
        let data = dir.path().join("data");
        let mut backup = unprivileged(programs().join("pg_basebackup"));
        backup.arg("-h").arg(self.dir()).args([
            "-p",
            &self.port.to_string(),
            "-U",
            "postgres",
            "-R",
            "-c",
            "fast",
            "-D",
        ]);
        succeed(backup.arg(data));
        Self { daemon: None, dir, port, address: address.to_owned(), is_shared: false }
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    pub(crate) fn host(&self) -> String {
        format!("{}:{}", self.address, self.port)
    }

    pub(crate) fn url(&self, parameters: &str) -> String {
        format!("postgres://postgres@{}/postgres?{parameters}", self.host())
    }

    pub(crate) fn lock(&self, parameters: &str) -> LockFile {
        LockFile::open(&self.url(parameters)).unwrap()
    }

    /// A connection for the test itself.
    pub(crate) async fn client(&self) -> Client {
        let host = self.dir.path().to_str().unwrap();
        let mut config = tokio_postgres::Config::new();
        config.host(host).port(self.port).user("postgres").dbname("postgres");
        let (client, connection) = config.connect(NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }

    /// A task that waits for the lock with this name, and is in the queue of the server.
    pub(crate) async fn waiting(&self, lock: &LockFile, name: &str) -> JoinHandle<Result<LockGuard, LockError>> {
        self.waiting_as(lock, name, 1).await
    }

    /// The same where others wait already, so that they are `number` then.
    pub(crate) async fn waiting_as(
        &self,
        lock: &LockFile,
        name: &str,
        number: usize,
    ) -> JoinHandle<Result<LockGuard, LockError>> {
        let lock = lock.clone();
        let wait = tokio::spawn(async move { lock.obtain().await });
        until(&self.client().await, &waiters(name), &number.to_string()).await;
        wait
    }
}

/// The number of the lock in SQL, as the documentation gives it.
pub(crate) fn key(name: &str) -> String {
    format!("('x' || encode(sha256('{name}'), 'hex'))::bit(64)::bigint")
}

/// How many sessions have or want this lock.
pub(crate) fn sessions(name: &str, is_granted: bool) -> String {
    format!(
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted = {is_granted} \
         AND (classid::bigint << 32 | objid::bigint) = {}",
        key(name)
    )
}

/// How many processes wait in the queue of this lock.
pub(crate) fn waiters(name: &str) -> String {
    let places = format!(
        "('x' || encode(sha256(('tokio_lockfile ' || {})::bytea), 'hex'))::bit(64)::bigint & ~1048575::bigint",
        key(name)
    );
    format!(
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ExclusiveLock' \
         AND (classid::bigint << 32 | objid::bigint) BETWEEN ({places}) AND ({places}) + 1048575"
    )
}

/// For a process that must not outlive its parent.
pub(crate) fn until_stdin_ends() {
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).unwrap();
}

/// The single value that a query answers.
pub(crate) async fn value(client: &Client, query: &str) -> String {
    let answer = client.simple_query(query).await.unwrap();
    let rows = answer.iter().filter_map(|message| match message {
        tokio_postgres::SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or_default().to_owned()),
        _ => None,
    });
    rows.last().expect("a row")
}

/// Asks until the query answers `wanted`.
pub(crate) async fn until(client: &Client, query: &str, wanted: &str) {
    let began = Instant::now();
    loop {
        let answer = value(client, query).await;
        if answer == wanted {
            return;
        }
        assert!(began.elapsed() < HANG, "{query}: {answer}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
