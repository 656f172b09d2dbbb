//! Networks that only this test sees, one host in each namespace, and cuts between them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// The command `program` in a network namespace.
pub(crate) fn within(namespace: &str, program: &str) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", namespace, program]);
    command
}

/// Hosts on one bridge. The namespaces go with it.
pub(crate) struct Network {
    name: String,
    hosts: usize,
}

impl Network {
    /// Hosts with the numbers from 0.
    pub(crate) fn of(hosts: usize) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("tlf{}.{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let mut network = Self { name, hosts: 0 };
        let bridge = network.name.clone();
        run(&format!("netns add {bridge}"));
        run(&format!("-n {bridge} link add br0 type bridge"));
        run(&format!("-n {bridge} link set br0 up"));
        for number in 0..hosts {
            network.hosts += 1;
            let (namespace, address) = (network.namespace(number), network.address(number));
            run(&format!("netns add {namespace}"));
            run(&format!("link add to{number} netns {bridge} type veth peer name eth0 netns {namespace}"));
            run(&format!("-n {bridge} link set to{number} master br0 up"));
            run(&format!("-n {namespace} addr add {address}/24 dev eth0"));
            run(&format!("-n {namespace} link set eth0 up"));
            run(&format!("-n {namespace} link set lo up"));
        }
        network
    }

    pub(crate) fn namespace(&self, number: usize) -> String {
        format!("{}-{number}", self.name)
    }

    /// The namespace of the bridge, where the host `number` is behind the interface `to{number}`.
    #[allow(dead_code, reason = "for the nemesis")]
    pub(crate) fn bridge(&self) -> String {
        self.name.clone()
    }

    pub(crate) fn address(&self, number: usize) -> String {
        format!("10.77.0.{}", number + 1)
    }

    /// The first hosts, for the members of a cluster.
    pub(crate) fn members(&self, count: usize) -> Vec<(String, String)> {
        (0..count).map(|number| (self.namespace(number), self.address(number))).collect()
    }

    /// From now on nothing passes between the two hosts, and nobody hears of that.
    pub(crate) fn cut(&self, one: usize, other: usize) {
        self.rules("-A", one, other);
    }

    pub(crate) fn mend(&self, one: usize, other: usize) {
        self.rules("-D", one, other);
    }

    /// What the host knows the others by, in the format of hosts(5), until the returned folder goes. ip-netns(8) mounts it.
    pub(crate) fn names(&self, number: usize, hosts: &str) -> Names {
        let dir = Path::new("/etc/netns").join(self.namespace(number));
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("hosts"), hosts).unwrap();
        Names(dir)
    }

    /// From now on the packets from one host to the other are lost. They are lost where they arrive: a kernel gives up
    /// earlier what its own firewall does not let out.
    #[allow(dead_code, reason = "for the nemesis")]
    pub(crate) fn lose(&self, from: usize, to: usize) {
        self.rule("-A", "INPUT", "-s", to, from);
    }

    #[allow(dead_code, reason = "for the nemesis")]
    pub(crate) fn pass(&self, from: usize, to: usize) {
        self.rule("-D", "INPUT", "-s", to, from);
    }

    fn rules(&self, action: &str, one: usize, other: usize) {
        self.rule(action, "INPUT", "-s", one, other);
        self.rule(action, "OUTPUT", "-d", one, other);
    }

    /// A rule of the host `at` for the packets from or to the host `other`.
    fn rule(&self, action: &str, chain: &str, side: &str, at: usize, other: usize) {
        let (mut iptables, other) = (within(&self.namespace(at), "iptables"), self.address(other));
        assert!(iptables.args(["-w", action, chain, side, &other, "-j", "DROP"]).status().unwrap().success());
    }
}

pub(crate) struct Names(PathBuf);

impl Drop for Names {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for namespace in (0..self.hosts).map(|number| self.namespace(number)).chain([self.name.clone()]) {
            let _ = Command::new("ip").args(["netns", "del", &namespace]).status();
        }
    }
}

fn run(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}
