//! One campaign: it sets the servers up, lets the clients and the nemesis work, and has the history judged.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::checker::{Calm, Verdict, judge};
use crate::fleet::Fleet;
use crate::history::{Event, LOCKS, now, read};
use crate::schedule::{Fault, Lane, OF_CLIENTS, OF_CUTS, OF_TRAFFIC, steps};
use crate::setting::{CLIENT_HOSTS, LONGEST_LEASE, Setting};
use crate::stage::{Wires, act};
use crate::support::HANG;
use crate::{etcd, postgres};

/// After the last fault: within this time and that of the longest lease everything has to work again. That lease may
/// have begun with the fault, and then come connections and pauses.
const RECOVERY: Duration = Duration::from_secs(8);

/// For so long everything has to go well.
const CALM: Duration = Duration::from_secs(6);

struct Options {
    engine: Option<String>,
    setup: Option<String>,
    client: Client,
    /// Only these faults. All if there are none.
    faults: Vec<String>,
    /// The lease of all clients, in seconds.
    lease: Option<u64>,
    seed: u64,
    length: Duration,
}

/// Whose locks are tested.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Client {
    Ours,
    /// PostgreSQL's advisory locks without a lease.
    Naive,
    /// The mutex of etcd's Go client.
    Go,
}

impl Options {
    fn parse(words: &[&str]) -> Self {
        let seed = fastrand::u64(..1 << 32);
        let mut options = Self {
            engine: None,
            setup: None,
            client: Client::Ours,
            faults: Vec::new(),
            lease: None,
            seed,
            length: Duration::from_secs(120),
        };
        for pair in words.chunks(2) {
            match pair {
                ["--engine", name] => options.engine = Some(name.to_string()),
                ["--setup", name] => options.setup = Some(name.to_string()),
                ["--client", "naive"] => options.client = Client::Naive,
                ["--client", "go"] => options.client = Client::Go,
                ["--faults", names] => options.faults = names.split(',').map(str::to_owned).collect(),
                ["--lease", seconds] => options.lease = Some(seconds.parse().expect("seconds")),
                ["--seed", seed] => options.seed = seed.parse().expect("a seed"),
                ["--minutes", minutes] => {
                    options.length = Duration::from_secs_f64(minutes.parse::<f64>().expect("minutes") * 60.0);
                }
                other => panic!("unknown option {other:?}; the header of tests/nemesis/main.rs lists the options"),
            }
        }
        options
    }

    /// Those of these faults that are wanted.
    fn wanted(&self, faults: &[Fault]) -> Vec<Fault> {
        let is_wanted = |fault: &&Fault| self.faults.is_empty() || self.faults.contains(&format!("{fault:?}"));
        faults.iter().filter(is_wanted).copied().collect()
    }

    /// `faults`: those that there are.
    fn check(&self, faults: &[Fault]) {
        let names: Vec<String> = faults.iter().map(|fault| format!("{fault:?}")).collect();
        assert!(self.faults.iter().all(|name| names.contains(name)), "the faults of this setup are {names:?}");
    }

    fn recovery(&self) -> Duration {
        RECOVERY + self.lease.map_or(LONGEST_LEASE, |lease| LONGEST_LEASE.max(Duration::from_secs(lease)))
    }

    /// What is not named is drawn with the seed.
    fn choose(&self) -> (String, String) {
        let mut random = fastrand::Rng::with_seed(self.seed);
        let drawn = random.choice(["etcd", "postgres"]).unwrap();
        let engine = self.engine.clone().unwrap_or(drawn.into());
        let setups: &[&str] = if engine == "etcd" { &etcd::SETUPS } else { &postgres::SETUPS };
        let drawn = *random.choice(setups).unwrap();
        let setup = self.setup.clone().unwrap_or(drawn.into());
        assert!(setups.contains(&&*setup), "the setups are {setups:?}");
        (engine, setup)
    }
}

impl Client {
    /// Those that are not ours want only the first of the locks. The others are for a semaphore and a singleton.
    const LOCKS_OF_OTHERS: usize = 2;

    /// How it is started, without the arguments of each client.
    fn program(self, dir: &Path) -> Vec<String> {
        let this = std::env::current_exe().unwrap().to_str().unwrap().to_owned();
        match self {
            Self::Ours => vec![this, "client".into()],
            Self::Naive => vec![this, "naive".into()],
            Self::Go => vec![build_mutex(dir)],
        }
    }
}

/// With Debian's packages of Go and of etcd's client.
fn build_mutex(dir: &Path) -> String {
    let program = dir.join("mutex").to_str().unwrap().to_owned();
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/nemesis/mutex.go");
    let mut go = Command::new("go");
    go.args(["build", "-o", &program, source]).env("GO111MODULE", "off").env("GOPATH", "/usr/share/gocode");
    assert!(go.env("GOCACHE", dir.join("cache")).status().expect("Go is installed").success());
    program
}

pub(crate) fn run(words: &[&str]) {
    let options = Options::parse(words);
    let (engine, setup) = options.choose();
    println!(
        "nemesis: --engine {engine} --setup {setup} --seed {} --minutes {}",
        options.seed,
        options.length.as_secs_f64() / 60.0
    );
    let dir = tempfile::tempdir().unwrap();
    let mut setting = Setting::start(&engine, &setup, dir.path());
    let program = options.client.program(dir.path());
    let began = now();
    let fleet = Fleet::start(dir.path(), options.seed, setting.plans(&program, options.lease));
    let events = disturb(&mut setting, &fleet, &options);
    if options.client != Client::Ours {
        let verdict = judge(&read(dir.path()), &events, None, Client::LOCKS_OF_OTHERS);
        print(&verdict, &events, began);
        let is_caught = verdict.two_holders + verdict.tokens_out_of_order > 0;
        return assert!(is_caught, "this client is known to be unsafe, but the checker did not notice");
    }
    let verdict = calm_down(dir.path(), &setting, fleet, &events, options.recovery());
    print(&verdict, &events, began);
    if let Some(corruption) = setting.servers.corruption() {
        // Two members that disagree about the past cannot agree about a lock.
        return println!("this run proves nothing: {corruption}");
    }
    if !verdict.violations.is_empty() {
        let kept = dir.keep();
        panic!("{} violations, seed {}; the history is in {kept:?}", verdict.violations.len(), options.seed);
    }
}

/// After the last fault: waits until everything has to work again, lets the clients end, and judges what was and what
/// is left.
fn calm_down(dir: &Path, setting: &Setting, fleet: Fleet, events: &[Event], recovery: Duration) -> Verdict {
    let began = now();
    fleet.calm_down();
    std::thread::sleep(recovery);
    let calm = Calm { began, healthy: began + recovery, hiccup: longest_hiccup(CALM) };
    println!("the longest hiccup of this machine in calm: {:?}", calm.hiccup);
    let forgotten = forgotten(setting);
    let unserved = fleet.end(HANG);
    drop(fleet);
    let left = left_over(setting, recovery);
    let mut verdict = judge(&read(dir), events, Some(calm), LOCKS.len());
    if unserved > 0 {
        verdict.violations.push((now(), format!("{unserved} clients whose waits are not served")));
    }
    if !forgotten.is_empty() {
        verdict.violations.push((now(), format!("held for nobody: {forgotten:?}")));
    }
    if !left.is_empty() {
        verdict.violations.push((now(), format!("left over: {left:?}")));
    }
    verdict
}

/// Makes the faults of all lanes side by side.
fn disturb(setting: &mut Setting, fleet: &Fleet, options: &Options) -> Vec<Event> {
    let events = Mutex::new(Vec::new());
    let of_servers = setting.servers.faults();
    let mut administrator = setting.servers.administrator();
    let of_administrator = administrator.iter().flat_map(|(_, faults)| faults).copied().collect::<Vec<_>>();
    options.check(&[OF_CLIENTS, OF_CUTS, OF_TRAFFIC, &of_servers, &of_administrator].concat());
    let steps = |lane, faults: &[Fault]| steps(options.seed, lane, &options.wanted(faults), options.length);
    let wires = || Wires { network: &setting.network, servers: setting.hosts, clients: CLIENT_HOSTS };
    let servers = &mut setting.servers;
    std::thread::scope(|scope| {
        scope.spawn(|| act(&mut { fleet }, &steps(Lane::Clients, OF_CLIENTS), &events));
        scope.spawn(|| act(&mut wires(), &steps(Lane::Cuts, OF_CUTS), &events));
        scope.spawn(|| act(&mut wires(), &steps(Lane::Traffic, OF_TRAFFIC), &events));
        scope.spawn(|| act(&mut **servers, &steps(Lane::Servers, &of_servers), &events));
        if let Some((administrator, faults)) = &mut administrator {
            let steps = steps(Lane::Administrator, faults);
            scope.spawn(|| act(&mut **administrator, &{ steps }, &events));
        }
    });
    events.into_inner().unwrap()
}

/// By how much the longest of many short sleeps was too long.
fn longest_hiccup(length: Duration) -> Duration {
    const NAP: Duration = Duration::from_millis(5);
    let (began, mut longest) = (Instant::now(), Duration::ZERO);
    while began.elapsed() < length {
        let nap = Instant::now();
        std::thread::sleep(NAP);
        longest = longest.max(nap.elapsed() - NAP);
    }
    longest
}

/// The locks that processes have, but that nobody in these processes knows of any more.
fn forgotten(setting: &Setting) -> Vec<String> {
    let mut held = setting.servers.held_once();
    for _ in 0..2 {
        std::thread::sleep(Duration::from_secs(1));
        let now = setting.servers.held_once();
        held.retain(|key| now.contains(key));
    }
    held
}

/// What is left when the leases of all holders have ended.
fn left_over(setting: &Setting, limit: Duration) -> Vec<String> {
    let began = Instant::now();
    loop {
        let left = setting.servers.left_over();
        if left.is_empty() || began.elapsed() > limit {
            return left;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn print(verdict: &Verdict, events: &[Event], began: Duration) {
    let took = now() - began;
    let mut faults = BTreeMap::new();
    events.iter().for_each(|event| *faults.entry(event.fault).or_insert(0) += 1);
    let turns: usize = verdict.turns.values().sum();
    println!(
        "{:.1} minutes, {turns} operations, {} holds: {:?}",
        took.as_secs_f64() / 60.0,
        verdict.holds,
        verdict.turns
    );
    println!("{} faults: {faults:?}", events.len());
    println!("{} times two holders, {} tokens out of order", verdict.two_holders, verdict.tokens_out_of_order);
    println!("{} tokens, exceptions with the longest overlap: {:?}", verdict.tokens, verdict.exceptions);
    println!(
        "nobody held a lock for {:?} at most, in calm {:?}; all locks had a holder {:?} after the last fault",
        verdict.longest_gap, verdict.longest_gap_in_calm, verdict.healthy_after
    );
    for (moment, violation) in verdict.violations.iter().take(5) {
        println!("VIOLATION after {:.1} s: {violation}", moment.saturating_sub(began).as_secs_f64());
    }
}
