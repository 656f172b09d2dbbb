//! The protocols as programs: each step is one system call.
//!
//! A crash is possible before every step, and a process may start again at any time, with the PID of its last life or
//! with another. One assumption stands for the thirty seconds of grace: nobody alive pauses for so long in the middle of
//! breaking a lock (`Model::ages`).

use super::state::{Inode, Local, Name, PROCESSES, Process, Record, State};

/// Whose program a process runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Ours,
    Inn,
    NetBsd,
    Peak,
}

/// What can be left out of our protocol, to see that the search notices.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Without {
    /// Whether the name still stands for the file that has been locked, by whatever look.
    pub(crate) look_after_flock: bool,
    /// The link to a private name, and the count of links.
    pub(crate) link_discipline: bool,
    /// The removal of dead breakers' links.
    pub(crate) purge: bool,
    /// The look for a living breaker, where links cannot be explained.
    pub(crate) look_for_breakers: bool,
    pub(crate) flock_before_link: bool,
    pub(crate) unlink_before_unlock: bool,
}

/// Where a process is: its next system call. Ours name the function in src/protocol/shlock/ that makes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum At {
    Dead,
    Idle,
    Held,

    /// `open_lock`: openat of the name.
    Open,
    /// `contend`: flock with LOCK_EX.
    Flock,
    /// `contend`, `names`: fstatat of the name.
    LookAgain,
    /// `read`: pread.
    Read,
    /// `judge`: pidfd_open of a foreign record's PID.
    AskPid,
    /// `judge_locked`: flock with LOCK_SH.
    Share,
    /// `is_locked`: LOCK_UN of that.
    Unshare,
    /// `break_stale`: fstat and fstatat.
    CountLinks,
    /// `purge`: fstatat of our private name, and unlinkat.
    PurgeOurs,
    /// `purge`: the same of the dead peers' names.
    PurgePeers,
    /// `break_stale`: fstat once more.
    CountAgain,
    /// `break_stale`: linkat, by descriptor.
    LinkBreaking,
    /// `is_being_broken`: getdents64, for links that could not be explained.
    LookForBreakers,
    /// `break_stale`: fstatat of the name.
    LookLinked,
    /// `break_stale`: unlinkat of the name.
    UnlinkStale,
    /// `break_stale`: unlinkat of the private name, with the lock gone to somebody else or to be made.
    UnlinkBreaking {
        then: Then,
    },
    /// `Probe::drop`: LOCK_UN, close.
    UnlockStale {
        then: Then,
    },
    /// `clear`: openat of the private name; then what called it goes on.
    ClearOpen {
        held: bool,
    },
    /// `clear`: flock.
    ClearFlock {
        held: bool,
    },
    /// `clear`, `names`: fstatat, unlinkat.
    ClearUnlink {
        held: bool,
    },
    /// `create`: openat with O_TMPFILE.
    Create,
    /// `create`: flock.
    FlockOwn,
    /// `acquire`: write.
    Write,
    /// `acquire`: linkat, by descriptor.
    Publish,
    /// Only without `flock_before_link`.
    FlockPublished,
    /// `acquire`, `names`: fstatat.
    LookPublished,
    /// `Held::remove`: fstatat of the name.
    LookHeld,
    /// `Held::remove`: unlinkat.
    UnlinkHeld,
    /// `Held::remove`: LOCK_UN.
    UnlockHeld,

    /// The peers': temporary file and record.
    PeerCreate,
    PeerWrite,
    PeerLink,
    PeerOpen,
    PeerRead,
    PeerKill,
    PeerUnlinkSecond,
    PeerCountLinks,
    PeerLinkSecond,
    PeerLook,
    PeerUnlinkStale,
    PeerDropSecond {
        retry: bool,
    },
    PeerCheckOwn,
    PeerDropTemporary {
        held: bool,
    },
    PeerUnlinkHeld,
    /// PEAK's: unlink without another look.
    PeakUnlinkStale,
}

/// How a try goes on after it has let go of what it had open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Then {
    LookAgain,
    Make,
    GiveUp,
}

impl At {
    pub(crate) fn is_held(self) -> bool {
        matches!(self, Self::Held | Self::LookHeld | Self::UnlinkHeld | Self::PeerUnlinkHeld)
    }

    /// The system calls of a step of ours, as far as they decide anything.
    pub(crate) fn calls(self, state: &State<At>, process: Process) -> Vec<&'static str> {
        let file = state.local(process).file;
        let has = |name| file.is_some() && state.look_up(name) == file;
        match self {
            Self::Open | Self::ClearOpen { .. } | Self::Create => vec!["openat"],
            Self::Flock | Self::Share | Self::Unshare | Self::ClearFlock { .. } | Self::FlockOwn | Self::UnlockHeld => {
                vec!["flock"]
            }
            Self::UnlockStale { .. } if file.is_some_and(|file| state.file(file).locked_by == Some(process as u8)) => {
                vec!["flock"]
            }
            Self::Read => vec!["pread64"],
            Self::AskPid => vec!["pidfd_open"],
            Self::LookAgain | Self::CountLinks | Self::LookLinked | Self::LookPublished => vec!["newfstatat"],
            // `purge` looks for two private names of ours; the model has but one.
            Self::PurgeOurs if has(Name::Breaking) => vec!["newfstatat", "unlinkat", "newfstatat"],
            Self::PurgeOurs => vec!["newfstatat", "newfstatat"],
            Self::PurgePeers => {
                let is_dead = |peer: &Process| state.local(*peer).at == At::Dead && has(Name::Second(*peer as u8));
                let peers = state.processes.iter().flatten().count();
                let dead = (0..peers).filter(is_dead).flat_map(|_| ["pidfd_open", "newfstatat", "unlinkat"]);
                std::iter::once("getdents64").chain(dead).collect()
            }
            Self::LinkBreaking | Self::Publish => vec!["linkat"],
            Self::UnlinkStale | Self::UnlinkBreaking { .. } | Self::UnlinkHeld => vec!["unlinkat"],
            Self::ClearUnlink { .. } => vec!["newfstatat", "unlinkat", "flock"],
            Self::Write => vec!["write"],
            // LockGuard::release looks at the path, too: its directory may be another by now.
            Self::LookHeld => vec!["newfstatat", "newfstatat"],
            _ => vec![],
        }
    }

    /// Whether a peer has a temporary file to whose age it will compare the lock's.
    pub(crate) fn compares_ages(self) -> bool {
        use At::*;
        matches!(
            self,
            PeerLink
                | PeerOpen
                | PeerRead
                | PeerKill
                | PeerUnlinkSecond
                | PeerCountLinks
                | PeerLinkSecond
                | PeerLook
                | PeerUnlinkStale
                | PeerDropSecond { retry: true }
        )
    }

    /// Whether thirty seconds here would break the assumption of the grace.
    fn is_breaking(self) -> bool {
        matches!(
            self,
            Self::LookForBreakers
                | Self::LookLinked
                | Self::UnlinkStale
                | Self::UnlinkBreaking { .. }
                | Self::PeerLook
                | Self::PeerUnlinkStale
                | Self::PeerDropSecond { .. }
        )
    }
}

/// Whether a lock may depend on an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Chance {
    /// It happens in due course.
    Course,
    /// It may happen, but nobody can count on it: a crash, a PID that comes again.
    Luck,
}

/// Who takes part.
#[derive(Clone, Debug)]
pub(crate) struct Model {
    pub(crate) kinds: Vec<Kind>,
    pub(crate) without: Without,
}

impl Model {
    pub(crate) fn new(kinds: &[Kind]) -> Self {
        assert!(kinds.len() <= PROCESSES);
        Self { kinds: kinds.to_vec(), without: Without::default() }
    }

    pub(crate) fn start(&self) -> State<At> {
        State::new(self.kinds.iter().map(|_| At::Idle))
    }

    /// Two holders, or a holder of ours whose name is not his any more.
    pub(crate) fn is_violated(&self, state: &State<At>) -> bool {
        let held = |(process, local): (Process, &Option<Local<At>>)| {
            local.filter(|local| local.at.is_held()).map(|local| (process, local))
        };
        let holders: Vec<_> = state.processes.iter().enumerate().filter_map(held).collect();
        let has_name = |local: &Local<At>| local.made.is_some() && state.look_up(Name::Lock) == local.made;
        holders.len() > 1
            || holders.iter().any(|(process, local)| self.kinds[*process] == Kind::Ours && !has_name(local))
    }

    /// What can happen next.
    pub(crate) fn successors(&self, state: &State<At>) -> Vec<(State<At>, Chance)> {
        let mut successors = Vec::new();
        for process in 0..self.kinds.len() {
            let local = state.local(process);
            let mut with = |at: At, chance: Chance, change: &dyn Fn(&mut State<At>) -> bool| {
                let mut next = *state;
                next.local_mut(process).at = at;
                if change(&mut next) {
                    successors.push((next, chance));
                }
            };
            if local.at == At::Dead {
                // With the PID of its last life, on which nobody can count, or with a new one.
                with(At::Idle, Chance::Luck, &|_| true);
                with(At::Idle, Chance::Course, &|next| next.retire(process));
                continue;
            }
            // To end while idle is no crash.
            let chance = if local.at == At::Idle { Chance::Course } else { Chance::Luck };
            with(At::Dead, chance, &|next| {
                next.close_all(process);
                true
            });
            let mut next = *state;
            self.step(&mut next, process);
            successors.push((next, Chance::Course));
        }
        successors.extend(self.ages(state).map(|next| (next, Chance::Course)));
        successors
    }

    /// Thirty seconds pass for the lock file.
    fn ages(&self, state: &State<At>) -> Option<State<At>> {
        let inode = state.look_up(Name::Lock)?;
        let in_use = state.processes.iter().flatten().any(|local| local.at.is_breaking() && local.file == Some(inode));
        let mut next = *state;
        next.file_mut(inode).is_old = true;
        (!in_use && !state.file(inode).is_old).then_some(next)
    }

    /// One system call of one process.
    pub(crate) fn step(&self, state: &mut State<At>, process: Process) {
        match self.kinds[process] {
            Kind::Ours => self.step_ours(state, process),
            kind => step_peer(kind, state, process),
        }
    }

    fn step_ours(&self, state: &mut State<At>, process: Process) {
        let Local { at, file, made, private, .. } = *state.local(process);
        let file = || file.expect("the lock file is open");
        let made = || made.expect("a file is made");
        let names_lock = |state: &State<At>, inode| state.look_up(Name::Lock) == Some(inode);
        let next = match at {
            At::Idle => At::Open,
            At::Open => match state.look_up(Name::Lock) {
                found @ Some(_) => {
                    state.local_mut(process).file = found;
                    At::Flock
                }
                None => At::Create,
            },
            At::Flock => match state.try_lock(process, file()) {
                true if self.without.look_after_flock => At::Read,
                true => At::LookAgain,
                false => At::Read,
            },
            At::LookAgain => match names_lock(state, file()) {
                true => At::Read,
                false => At::UnlockStale { then: Then::LookAgain },
            },
            At::Read => match (state.file(file()).record, state.file(file()).locked_by == Some(process as u8)) {
                (Record::Marked(_), true) => At::CountLinks,
                (Record::Foreign(_), _) | (_, false) => At::AskPid,
                (Record::Blank, true) if state.file(file()).is_old => At::CountLinks,
                (Record::Blank, true) => At::UnlockStale { then: Then::GiveUp },
            },
            At::AskPid => {
                let is_locked = state.file(file()).locked_by == Some(process as u8);
                match (state.file(file()).record, is_locked) {
                    (Record::Foreign(pid), true) if !is_alive(state, pid) => At::CountLinks,
                    (_, true) => At::UnlockStale { then: Then::GiveUp },
                    // Refused: busy or unclear, which end the try alike.
                    (Record::Marked(pid) | Record::Foreign(pid), false) if is_alive(state, pid) => At::Share,
                    (_, false) => At::UnlockStale { then: Then::GiveUp },
                }
            }
            At::Share => match state.try_share(process, file()) {
                true => At::Unshare,
                false => At::UnlockStale { then: Then::GiveUp },
            },
            At::Unshare => At::UnlockStale { then: Then::GiveUp },

            At::CountLinks => {
                let links = state.links(file());
                state.local_mut(process).links = links;
                match names_lock(state, file()) {
                    _ if self.without.look_after_flock => At::UnlinkStale,
                    false => At::UnlockStale { then: Then::LookAgain },
                    _ if self.without.link_discipline => At::UnlinkStale,
                    _ if links == 1 => At::LinkBreaking,
                    _ if self.without.purge => At::UnlockStale { then: Then::GiveUp },
                    _ => At::PurgeOurs,
                }
            }
            At::PurgeOurs => {
                if state.look_up(Name::Breaking) == Some(file()) {
                    state.unlink(Name::Breaking);
                }
                At::PurgePeers
            }
            At::PurgePeers => {
                let dead: Vec<bool> = (0..PROCESSES)
                    .map(|process| state.processes[process].is_none_or(|local| local.at == At::Dead))
                    .collect();
                state.purge(file(), |process| dead[process]);
                At::CountAgain
            }
            At::CountAgain => {
                let links = state.links(file());
                state.local_mut(process).links = links;
                match links {
                    0 => At::UnlockStale { then: Then::LookAgain },
                    1 => At::LinkBreaking,
                    _ if state.file(file()).is_old => At::LinkBreaking,
                    _ => At::UnlockStale { then: Then::GiveUp },
                }
            }
            At::LinkBreaking => match state.link(file(), Name::Breaking) {
                true if state.local(process).links == 1 || self.without.look_for_breakers => At::LookLinked,
                true => At::LookForBreakers,
                false => At::ClearOpen { held: false },
            },
            At::LookForBreakers => {
                let is_at_it = |peer: Process| {
                    state.processes[peer].is_some_and(|local| local.at != At::Dead)
                        && state.look_up(Name::Second(peer as u8)) == Some(file())
                };
                match (0..PROCESSES).any(is_at_it) {
                    true => At::UnlinkBreaking { then: Then::GiveUp },
                    false => At::LookLinked,
                }
            }
            At::LookLinked => {
                let before = state.local(process).links;
                let alone = names_lock(state, file()) && (before != 1 || state.links(file()) == 2);
                if alone { At::UnlinkStale } else { At::UnlinkBreaking { then: Then::GiveUp } }
            }
            At::UnlinkStale => {
                state.unlink(Name::Lock);
                match self.without.link_discipline || self.without.look_after_flock {
                    true => At::UnlockStale { then: Then::Make },
                    false => At::UnlinkBreaking { then: Then::Make },
                }
            }
            At::UnlinkBreaking { then } => {
                state.unlink(Name::Breaking);
                state.local_mut(process).links = 0;
                At::UnlockStale { then }
            }
            At::UnlockStale { then } => {
                state.close_all(process);
                match then {
                    Then::LookAgain => At::Open,
                    Then::Make => At::Create,
                    Then::GiveUp => At::Idle,
                }
            }

            At::ClearOpen { held } => {
                state.local_mut(process).private = state.look_up(Name::Breaking);
                match state.local(process).private {
                    Some(_) => At::ClearFlock { held },
                    None => after_clear(held),
                }
            }
            At::ClearFlock { held } => {
                let private = private.expect("the private file is open");
                // One descriptor's lock does not exclude another's of the same process here, as it does in truth; but
                // nobody looks for a private name of the file it has locked.
                match state.try_lock(process, private) {
                    true => At::ClearUnlink { held },
                    false => {
                        state.local_mut(process).private = None;
                        after_clear(held)
                    }
                }
            }
            At::ClearUnlink { held } => {
                let private = private.expect("the private file is open");
                if state.look_up(Name::Breaking) == Some(private) {
                    state.unlink(Name::Breaking);
                }
                state.unlock(process, private);
                state.local_mut(process).private = None;
                after_clear(held)
            }

            At::Create => {
                state.local_mut(process).made = Some(state.create());
                if self.without.flock_before_link { At::Write } else { At::FlockOwn }
            }
            At::FlockOwn => {
                state.try_lock(process, made());
                At::Write
            }
            At::Write => {
                state.file_mut(made()).record = Record::Marked(Some(process as u8));
                At::Publish
            }
            At::Publish => match state.link(made(), Name::Lock) {
                true => At::LookPublished,
                false => At::UnlockStale { then: Then::LookAgain },
            },
            At::FlockPublished => match state.try_lock(process, made()) {
                true => At::ClearOpen { held: true },
                false => At::UnlockStale { then: Then::GiveUp },
            },
            At::LookPublished => match names_lock(state, made()) {
                true if self.without.flock_before_link => At::FlockPublished,
                true => At::ClearOpen { held: true },
                false => At::UnlockStale { then: Then::LookAgain },
            },
            At::Held => At::LookHeld,
            At::LookHeld if self.without.unlink_before_unlock => {
                state.unlock(process, made());
                At::UnlinkHeld
            }
            At::LookHeld => At::UnlinkHeld,
            At::UnlinkHeld => {
                state.unlink(Name::Lock);
                At::UnlockHeld
            }
            At::UnlockHeld => {
                state.close_all(process);
                At::Idle
            }
            other => unreachable!("{other:?} is a peer's, or nobody's"),
        };
        state.local_mut(process).at = next;
    }
}

fn after_clear(held: bool) -> At {
    if held { At::Held } else { At::UnlockStale { then: Then::GiveUp } }
}

fn is_alive(state: &State<At>, pid: Option<u8>) -> bool {
    pid.is_some_and(|process| state.local(process.into()).at != At::Dead)
}

/// INN 2.8's shlock.c, NetBSD's shlock.c 1.15, and PEAK's `SHLockFile`. The lock tool and the script for which it locks
/// are one process here.
fn step_peer(kind: Kind, state: &mut State<At>, process: Process) {
    let (temporary, second) = (Name::Temporary(process as u8), Name::Second(process as u8));
    let Local { at, file, made, .. } = *state.local(process);
    let file = || file.expect("the lock file is open");
    let made = || made.expect("a temporary file is made");
    let next = match at {
        At::Idle => At::PeerCreate,
        At::PeerCreate => {
            state.unlink(temporary);
            let inode: Inode = state.create();
            state.link(inode, temporary);
            state.local_mut(process).made = Some(inode);
            At::PeerWrite
        }
        At::PeerWrite => {
            state.file_mut(made()).record = Record::Foreign(Some(process as u8));
            // Whatever changed before is older than this file.
            if let Some(lock) = state.look_up(Name::Lock) {
                state.file_mut(lock).changed_since &= !(1 << process);
            }
            At::PeerLink
        }
        At::PeerLink => match (state.link(made(), Name::Lock), kind) {
            (true, Kind::NetBsd) => At::PeerCheckOwn,
            (true, _) => At::PeerDropTemporary { held: true },
            (false, _) => At::PeerOpen,
        },
        At::PeerOpen => match state.look_up(Name::Lock) {
            None => At::PeerDropTemporary { held: false },
            found => {
                let local = state.local_mut(process);
                local.file = found;
                // NetBSD counts the links here.
                state.local_mut(process).links = state.links(found.expect("just found"));
                At::PeerRead
            }
        },
        At::PeerRead => match state.file(file()).record {
            Record::Blank => At::PeerUnlinkSecond,
            _ => At::PeerKill,
        },
        At::PeerKill => match (state.file(file()).record, kind) {
            (Record::Marked(pid) | Record::Foreign(pid), _) if is_alive(state, pid) => {
                At::PeerDropTemporary { held: false }
            }
            (_, Kind::Peak) => At::PeakUnlinkStale,
            _ => At::PeerUnlinkSecond,
        },
        At::PeakUnlinkStale => {
            state.unlink(Name::Lock);
            At::PeerLink
        }
        At::PeerUnlinkSecond => {
            state.unlink(second);
            At::PeerCountLinks
        }
        At::PeerCountLinks => {
            let links = if kind == Kind::NetBsd { state.local(process).links } else { state.links(file()) };
            let changed = state.file(file()).changed_since & (1 << process) != 0;
            if changed || links != 1 { At::PeerDropTemporary { held: false } } else { At::PeerLinkSecond }
        }
        At::PeerLinkSecond => match state.look_up(Name::Lock) {
            Some(inode) => {
                state.link(inode, second);
                At::PeerLook
            }
            None => At::PeerDropTemporary { held: false },
        },
        At::PeerLook => match state.look_up(Name::Lock) {
            Some(found) if found == file() && state.links(found) == 2 => At::PeerUnlinkStale,
            _ => At::PeerDropSecond { retry: false },
        },
        At::PeerUnlinkStale => {
            state.unlink(Name::Lock);
            At::PeerDropSecond { retry: true }
        }
        At::PeerDropSecond { retry } => {
            state.unlink(second);
            if retry { At::PeerLink } else { At::PeerDropTemporary { held: false } }
        }
        At::PeerCheckOwn => At::PeerDropTemporary { held: state.links(made()) == 2 },
        At::PeerDropTemporary { held } => {
            state.unlink(temporary);
            state.local_mut(process).file = None;
            state.local_mut(process).links = 0;
            if !held {
                state.local_mut(process).made = None;
            }
            if held { At::Held } else { At::Idle }
        }
        At::Held => At::PeerUnlinkHeld,
        At::PeerUnlinkHeld => {
            if state.look_up(Name::Lock) == state.local(process).made {
                state.unlink(Name::Lock);
            }
            state.local_mut(process).made = None;
            At::Idle
        }
        other => unreachable!("{other:?} is ours, or nobody's"),
    };
    state.local_mut(process).at = next;
}
