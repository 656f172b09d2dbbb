//! What stands between clients and servers: PgBouncer, pgpool-II and haproxy, which the tests start themselves.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio_lockfile::LockFile;
use tokio_postgres::{Client, NoTls};

use crate::server::{
    Daemon, Server, free_port, shell_in, succeed, unprivileged, unprivileged_dir, write_for_unprivileged,
};
use crate::support::HANG;

fn ss_in(namespace: &str) -> Command {
    let mut ss = Command::new("ip");
    ss.args(["netns", "exec", namespace, "ss"]);
    ss
}

/// A program with one file of configuration, at 127.0.0.1 or in a network namespace.
struct Middleman {
    _daemon: Daemon,
    dir: TempDir,
    port: u16,
}

impl Middleman {
    fn start(shell: Command, program: &str, options: &[&str], configure: impl Fn(&Path, u16) -> String) -> Self {
        let (dir, port) = (unprivileged_dir(), free_port());
        let file = dir.path().join("configuration");
        write_for_unprivileged(&file, &configure(dir.path(), port));
        let arguments = [options, &[file.to_str().unwrap()]].concat();
        let daemon = Daemon::start(shell, "TERM", program, &arguments, &dir.path().join("log"), None);
        Self { _daemon: daemon, dir, port }
    }

    /// Waits until it listens. `ss` is run there where it does.
    fn wait_for(self, mut ss: Command) -> Self {
        ss.args(["-Hltn", &format!("sport = :{}", self.port)]);
        let began = Instant::now();
        while succeed(&mut ss).stdout.is_empty() {
            assert!(began.elapsed() < HANG, "{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
        self
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    async fn client(&self) -> Client {
        let mut config = tokio_postgres::Config::new();
        config.host("127.0.0.1").port(self.port).user("postgres").dbname("postgres");
        let (client, connection) = config.connect(NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }

    fn lock(&self, parameters: &str) -> LockFile {
        LockFile::open(&format!("postgres://postgres@127.0.0.1:{}/postgres?{parameters}", self.port)).unwrap()
    }
}

pub(crate) struct PgBouncer(Middleman);

impl PgBouncer {
    pub(crate) fn start(server: &Server, mode: &str, more: &str) -> Self {
        Self::start_by(unprivileged("/bin/sh"), Command::new("ss"), "127.0.0.1", server, mode, more)
    }

    /// The same beside a server in a network namespace.
    pub(crate) fn start_in(namespace: &str, server: &Server, mode: &str, more: &str) -> Self {
        Self::start_by(shell_in(namespace), ss_in(namespace), server.address(), server, mode, more)
    }

    fn start_by(shell: Command, ss: Command, address: &str, server: &Server, mode: &str, more: &str) -> Self {
        let configure = |dir: &Path, port| {
            let users = dir.join("users");
            write_for_unprivileged(&users, "\"postgres\" \"\"\n");
            format!(
                "[databases]\n* = host={} port={}\n[pgbouncer]\nlisten_addr = {address}\nlisten_port = {port}\n\
                 unix_socket_dir =\nauth_type = trust\nauth_file = {}\npool_mode = {mode}\n{more}\n",
                server.dir().display(),
                server.port,
                users.display(),
            )
        };
        Self(Middleman::start(shell, "/usr/sbin/pgbouncer", &["-q"], configure).wait_for(ss))
    }

    pub(crate) fn lock(&self, parameters: &str) -> LockFile {
        self.0.lock(parameters)
    }

    pub(crate) fn port(&self) -> u16 {
        self.0.port
    }

    /// A client of the pool, as an application is.
    pub(crate) async fn client(&self) -> Client {
        self.0.client().await
    }
}

pub(crate) struct Haproxy(Middleman);

impl Haproxy {
    pub(crate) fn start(server: &Server, idle_limit: &str) -> Self {
        Self::start_by(unprivileged("/bin/sh"), Command::new("ss"), "127.0.0.1", server, idle_limit)
    }

    /// The same beside a server in a network namespace.
    pub(crate) fn start_in(namespace: &str, server: &Server, idle_limit: &str) -> Self {
        Self::start_by(shell_in(namespace), ss_in(namespace), server.address(), server, idle_limit)
    }

    /// As Debian configures it, but for the limit of both sides, which is 50 s there.
    fn start_by(shell: Command, ss: Command, address: &str, server: &Server, idle_limit: &str) -> Self {
        let configure = |_: &Path, port| {
            format!(
                "defaults\n mode tcp\n timeout connect 5000\n timeout client {idle_limit}\n timeout server {idle_limit}\n\
                 listen postgres\n bind {address}:{port}\n server one {}\n",
                server.host(),
            )
        };
        Self(Middleman::start(shell, "/usr/sbin/haproxy", &["-db", "-f"], configure).wait_for(ss))
    }

    pub(crate) fn lock(&self, parameters: &str) -> LockFile {
        self.0.lock(parameters)
    }

    pub(crate) fn port(&self) -> u16 {
        self.0.port
    }
}

/// Sends what only reads to a standby.
pub(crate) struct Pgpool(Middleman);

impl Pgpool {
    /// All that may go to the standby goes there.
    pub(crate) fn start(primary: &Server, standby: &Server) -> Self {
        let configure = |dir: &Path, port| {
            let dir = dir.display();
            let backends = [(primary, 0), (standby, 1)].map(|(server, number)| {
                format!(
                    "backend_hostname{number} = '127.0.0.1'\nbackend_port{number} = {}\nbackend_weight{number} = {number}\n\
                     backend_flag{number} = 'DISALLOW_TO_FAILOVER'\n",
                    server.port
                )
            });
            format!(
                "backend_clustering_mode = 'streaming_replication'\nlisten_addresses = '127.0.0.1'\nport = {port}\n\
                 socket_dir = '{dir}'\npcp_listen_addresses = ''\npcp_port = {}\npcp_socket_dir = '{dir}'\n\
                 wd_ipc_socket_dir = '{dir}'\npid_file_name = '{dir}/pid'\nlogdir = '{dir}'\nload_balance_mode = on\n\
                 sr_check_period = 1\nsr_check_user = 'postgres'\nnum_init_children = 8\n{}",
                free_port(),
                backends.concat(),
            )
        };
        let shell = unprivileged("/bin/sh");
        Self(Middleman::start(shell, "/usr/sbin/pgpool", &["-n", "-f"], configure).wait_for(Command::new("ss")))
    }

    pub(crate) fn lock(&self, parameters: &str) -> LockFile {
        self.0.lock(parameters)
    }

    pub(crate) fn log(&self) -> String {
        self.0.log()
    }

    pub(crate) async fn client(&self) -> Client {
        self.0.client().await
    }
}
