//! What stands between clients and servers, on a host of the network.

use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;

use crate::cluster::Running;
use crate::history::{Hit, Reach};
use crate::network::within;
use crate::schedule::Fault;

/// A pool or a proxy, that can be killed, stopped and started again.
pub(crate) struct Program {
    arguments: Vec<String>,
    running: Option<Running>,
}

impl Program {
    /// `words` begin with the program. They must not contain blanks.
    pub(crate) fn start(namespace: &str, words: &str) -> Self {
        let quiet = ["sh", "-c", r#"exec "$@" 2>/dev/null"#, "quiet"];
        let arguments = quiet.into_iter().chain(["ip", "netns", "exec", namespace]).chain(words.split(' '));
        let mut program = Self { arguments: arguments.map(str::to_owned).collect(), running: None };
        program.run();
        program
    }

    fn run(&mut self) {
        let arguments: Vec<&str> = self.arguments.iter().map(String::as_str).collect();
        self.running = Some(Running::start(&arguments));
    }

    pub(crate) fn begin(&mut self, fault: Fault) -> Hit {
        match fault {
            Fault::KillProxy => self.running = None,
            _ => self.running.as_ref().expect("it runs").signal(Signal::STOP),
        }
        let reach = if fault == Fault::KillProxy { Reach::Nobody } else { Reach::Everybody };
        Hit { what: "what is between".into(), reach }
    }

    pub(crate) fn end(&mut self, fault: Fault) {
        match fault {
            Fault::KillProxy => self.run(),
            _ => self.running.as_ref().expect("it runs").signal(Signal::CONT),
        }
    }
}

/// Waits until somebody listens at the port in a namespace.
pub(crate) fn until_it_listens(namespace: &str, port: u16) {
    let mut ss = within(namespace, "ss");
    ss.args(["-Hltn", &format!("sport = :{port}")]);
    while ss.output().unwrap().stdout.is_empty() {
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// haproxy in front of these servers, as Debian configures it but for the limits.
pub(crate) fn haproxy(namespace: &str, dir: &Path, port: u16, servers: &[String]) -> Program {
    let servers: String = servers.iter().enumerate().map(|(it, at)| format!(" server s{it} {at}\n")).collect();
    let text = format!(
        "defaults\n mode tcp\n timeout connect 2s\n timeout client 30s\n timeout server 30s\n\
         listen all\n bind :{port}\n{servers}"
    );
    let file = dir.join("haproxy.cfg");
    std::fs::write(&file, text).unwrap();
    Program::start(namespace, &format!("haproxy -db -f {}", file.display()))
}
