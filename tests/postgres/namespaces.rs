//! Two network namespaces with a cable between them, one for the server and one for a client.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::server::succeed;
use crate::support::this_program;

const DROP: [&str; 7] = ["iptables", "-A", "INPUT", "-i", "cable", "-j", "DROP"];

#[derive(Debug)]
pub(crate) struct Namespaces {
    pub(crate) server: String,
    client: String,
}

fn ip(arguments: &str) {
    succeed(Command::new("ip").args(arguments.split(' ')));
}

impl Namespaces {
    pub(crate) const SERVER: &str = "10.77.0.1";

    pub(crate) fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let namespaces = Self { server: format!("tlf-s-{name}"), client: format!("tlf-c-{name}") };
        let Self { server, client } = &namespaces;
        for namespace in [server, client] {
            ip(&format!("netns add {namespace}"));
            ip(&format!("-n {namespace} link set lo up"));
        }
        ip(&format!("-n {server} link add cable type veth peer name cable netns {client}"));
        for (namespace, address) in [(server, Self::SERVER), (client, "10.77.0.2")] {
            ip(&format!("-n {namespace} address add {address}/24 dev cable"));
            ip(&format!("-n {namespace} link set cable up"));
        }
        namespaces
    }

    /// The test binary, in the namespace of the client.
    pub(crate) fn program(&self) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.client]).arg(this_program().get_program());
        command
    }

    /// From now on, every packet on this way is lost, and nobody is told. It is lost where it arrives: a kernel gives
    /// up earlier what its own firewall does not let out.
    pub(crate) fn cut(&self, way: Way) {
        let namespaces = match way {
            Way::Both => &[&self.server, &self.client][..],
            Way::ToServer => &[&self.server],
            Way::ToClient => &[&self.client],
        };
        for namespace in namespaces {
            succeed(Command::new("ip").args(["netns", "exec", namespace]).args(DROP));
        }
    }

    /// How often the kernel of the server's machine sends a packet again. Guides for high availability say 3 or 5, which
    /// are at least 3 s and 12 s; the default is 15.
    pub(crate) fn set_retransmissions(&self, times: u32) {
        let set = format!("net.ipv4.tcp_retries2={times}");
        succeed(Command::new("ip").args(["netns", "exec", &self.server, "sysctl", "-qw", &set]));
    }
}

/// Which packets a cut loses.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Way {
    Both,
    ToServer,
    ToClient,
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for namespace in [&self.server, &self.client] {
            let _ = Command::new("ip").args(["netns", "delete", namespace]).status();
        }
    }
}
