//! A setting: servers, what is between, the network, and the clients.

use std::path::Path;
use std::time::Duration;

use crate::fleet::Plan;
use crate::network::Network;
use crate::schedule::Fault;
use crate::stage::Stage;
use crate::{etcd, postgres};

/// The leases of the clients, in seconds.
const LEASES: [u64; 4] = [2, 3, 4, 8];

pub(crate) const SHORTEST_LEASE: Duration = Duration::from_secs(2);
pub(crate) const LONGEST_LEASE: Duration = Duration::from_secs(8);

const CLIENTS: usize = 9;

pub(crate) const CLIENT_HOSTS: usize = 3;

/// Whether a client does one thing at a time, and holds locks mostly for long. Then nothing but the lease makes it ask the
/// servers. There are two on each host.
pub(crate) fn is_quiet(client: usize) -> bool {
    client >= CLIENT_HOSTS
}

pub(crate) trait Servers: Stage + Send {
    /// The faults that they can have.
    fn faults(&self) -> Vec<Fault>;

    /// Somebody whose faults meet those, and these faults.
    fn administrator(&self) -> Option<(Box<dyn Stage + Send>, Vec<Fault>)>;

    /// Where this client connects to, as a URL with `{}` in the place of the name.
    fn url(&self, client: usize, network: &Network) -> String;

    /// What is there of locks that nobody wants for long.
    fn held_once(&self) -> Vec<String>;

    /// How the servers themselves have lost data, if they have.
    fn corruption(&self) -> Option<String>;

    /// What is left of locks and their holders.
    fn left_over(&self) -> Vec<String>;
}

pub(crate) struct Setting {
    pub(crate) servers: Box<dyn Servers>,
    pub(crate) network: Network,
    /// How many hosts the servers and what is between have. They are the first ones, then come those of the clients, and
    /// at last that of the administrator.
    pub(crate) hosts: usize,
}

impl Setting {
    pub(crate) fn start(engine: &str, setup: &str, dir: &Path) -> Self {
        let hosts = if engine == "etcd" { etcd::members(setup) + 1 } else { postgres::HOSTS };
        let network = Network::of(hosts + CLIENT_HOSTS + 1);
        let servers: Box<dyn Servers> = match engine {
            "etcd" => Box::new(etcd::start(setup, dir, &network, hosts + CLIENT_HOSTS)),
            _ => Box::new(postgres::start(setup, dir, &network)),
        };
        Self { servers, network, hosts }
    }

    /// `lease`: that of all clients, in seconds. Else they have different ones.
    pub(crate) fn plans(&self, program: &[String], lease: Option<u64>) -> Vec<Plan> {
        let plan = |client| Plan {
            client,
            namespace: self.network.namespace(self.hosts + client % CLIENT_HOSTS),
            program: program.to_vec(),
            url: format!(
                "{}ttl={}s",
                self.servers.url(client, &self.network),
                lease.unwrap_or(LEASES[client % LEASES.len()])
            ),
        };
        (0..CLIENTS).map(plan).collect()
    }
}
