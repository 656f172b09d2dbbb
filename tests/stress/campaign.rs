//! The campaigns: which programs compete, for how long, and what the result must be.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio_lockfile::LockFile;

use crate::supervisor::{Member, Outcome, Supervisor};
use crate::worker::Role;

struct Campaign {
    name: &'static str,
    crew: &'static [Member],
    /// The percentage of the requested acquisitions.
    share: u64,
}

const fn member(role: Role) -> Member {
    Member { role, delayed: false }
}

const fn delayed(role: Role) -> Member {
    Member { role, delayed: true }
}

const CAMPAIGNS: [Campaign; 7] = [
    Campaign {
        name: "shlock alone",
        crew: &[
            member(Role::Shlock),
            member(Role::Shlock),
            member(Role::Shlock),
            member(Role::Shlock),
            delayed(Role::Shlock),
            delayed(Role::Shlock),
        ],
        share: 40,
    },
    Campaign {
        name: "shlock with INN's shlock(1)",
        crew: &[
            member(Role::Shlock),
            member(Role::Shlock),
            delayed(Role::Shlock),
            member(Role::InnShlock),
            member(Role::InnShlock),
            delayed(Role::InnShlock),
        ],
        share: 25,
    },
    Campaign {
        name: "flock with flock(1)",
        crew: &[
            member(Role::Flock),
            member(Role::Flock),
            member(Role::Flock),
            delayed(Role::Flock),
            member(Role::Flock1),
            member(Role::Flock1),
        ],
        share: 35,
    },
    Campaign {
        name: "shlock in chaos",
        crew: &[
            member(Role::ShlockInChaos),
            member(Role::ShlockInChaos),
            member(Role::ShlockInChaos),
            member(Role::Shlock),
            delayed(Role::ShlockInChaos),
        ],
        share: 60,
    },
    Campaign {
        name: "flock in chaos",
        crew: &[
            member(Role::FlockInChaos),
            member(Role::FlockInChaos),
            member(Role::FlockInChaos),
            member(Role::Flock),
            delayed(Role::FlockInChaos),
        ],
        share: 60,
    },
    Campaign {
        name: "shared flock with flock(1)",
        crew: &[
            member(Role::SharedFlock),
            member(Role::SharedFlock),
            member(Role::SharedFlock),
            delayed(Role::SharedFlock),
            member(Role::Flock1),
            member(Role::Flock1),
        ],
        share: 20,
    },
    Campaign {
        name: "naive PEAK, to be caught",
        crew: &[
            member(Role::Peak),
            member(Role::Peak),
            member(Role::Peak),
            member(Role::Peak),
            delayed(Role::Peak),
            delayed(Role::Peak),
        ],
        share: 10,
    },
];

struct Options {
    acquisitions: u64,
    only: Option<String>,
    dir: PathBuf,
}

impl Options {
    fn parse(words: &[&str]) -> Self {
        let mut options = Self { acquisitions: 75_000, only: None, dir: std::env::temp_dir() };
        for pair in words.chunks(2) {
            match pair {
                ["--acquisitions", number] => options.acquisitions = number.parse().expect("a number of acquisitions"),
                ["--campaign", name] => options.only = Some(name.to_string()),
                ["--dir", dir] => options.dir = dir.into(),
                other => panic!("unknown option {other:?}; the header of tests/stress/main.rs lists the options"),
            }
        }
        options
    }
}

pub(crate) fn run(words: &[&str]) {
    let options = Options::parse(words);
    // When a worker is killed, its programs become children of this process, which can then wait for them.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).unwrap();
    let is_wanted = |campaign: &&Campaign| options.only.as_ref().is_none_or(|name| name == campaign.name);
    let wanted: Vec<&Campaign> = CAMPAIGNS.iter().filter(is_wanted).collect();
    assert!(!wanted.is_empty(), "no campaign is called {:?}", options.only);
    for campaign in wanted {
        let dir = tempfile::tempdir_in(&options.dir).unwrap();
        let outcome = Supervisor::start(dir.path(), campaign.crew).run(options.acquisitions * campaign.share / 100);
        print(campaign.name, &outcome);
        judge(campaign, dir.path(), &outcome);
    }
}

fn print(name: &str, outcome: &Outcome) {
    let by_role: Vec<_> =
        outcome.acquired_by_role.iter().map(|(role, count)| format!("{} {count}", role.name())).collect();
    println!(
        "{name}: {} acquisitions ({}), {} reads, {} pauses, {} kills, {} takeovers, {} violations (of them {} lost updates), {:.1} s",
        outcome.seen.acquired,
        by_role.join(", "),
        outcome.seen.reads,
        outcome.pauses,
        outcome.kills,
        outcome.seen.takeovers,
        outcome.violations(),
        outcome.lost_updates,
        outcome.duration.as_secs_f64(),
    );
}

fn judge(campaign: &Campaign, dir: &Path, outcome: &Outcome) {
    assert!(outcome.kills > 0 && outcome.seen.takeovers > 0, "no process was killed in the critical section");
    assert_eq!(outcome.seen.reads > 0, campaign.crew.iter().any(|member| member.role == Role::SharedFlock));
    for (role, acquired) in &outcome.acquired_by_role {
        assert!(*acquired > 0, "{role:?} never got the lock");
    }
    let has = |role| campaign.crew.iter().any(|member| member.role == role);
    if has(Role::Peak) {
        return assert!(outcome.violations() > 0, "PEAK's protocol is unsafe, but the witnesses did not notice");
    }
    assert_eq!(outcome.violations(), 0, "{}", campaign.name);
    let path = dir.join("locks/x.lock");
    let (lock, left) = match has(Role::Shlock) {
        true => (LockFile::shlock(path).unwrap(), vec![]),
        false => (LockFile::flock(path).unwrap(), vec!["x.lock"]),
    };
    take_once(&lock);
    // A killed shlock(1) leaves its own files. Only INN may remove them.
    let is_inns = |name: &str| has(Role::InnShlock) && name.starts_with("shlock");
    let names =
        std::fs::read_dir(dir.join("locks")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let names: Vec<String> = names.filter(|name| !is_inns(name)).collect();
    assert_eq!(names, left, "leftover files");
}

/// One more acquisition and release. After it, no files of dead processes may be left.
fn take_once(lock: &LockFile) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        lock.obtain_timeout(Duration::from_secs(60)).await.unwrap().release().await.unwrap();
    });
}
