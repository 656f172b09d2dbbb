//! The protocols as programs: each step is one system call.
//!
//! A crash is possible before every step, a pause of any length between any two, and a process may start again at any
//! time, with the PID of its last life or with another.

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
    /// The removal of dead breakers' links, and the grace after which links do not count.
    pub(crate) purge: bool,
    /// The look for a living breaker, where links cannot be explained.
    pub(crate) look_for_breakers: bool,
    /// Whether the name still stands for the file, before what is dead is removed.
    pub(crate) look_before_purge: bool,
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
    /// `break_stale`: fstatat of our two private names, where there are more links than one.
    LookForOwnLink,
    /// `is_older_than_grace`.
    AskAge,
    /// `others_links`, before our own link.
    LookForOthers {
        links: Links,
    },
    /// `link_breaking`: linkat, by descriptor.
    LinkBreaking {
        links: Links,
    },
    /// `others_links`: getdents64.
    ListLinks {
        links: Links,
    },
    /// `others_links`: fstatat and pidfd_open, for one name after the other.
    JudgeLink {
        links: Links,
        number: u8,
        dead: u8,
    },
    /// `remove_dead_links`: fstatat of the name.
    LookUnbroken {
        links: Links,
        dead: u8,
    },
    /// `remove_dead_links`: unlinkat of one dead name after the other.
    RemoveDeadLink {
        links: Links,
        dead: u8,
    },
    /// `is_alone`: fstatat of the name.
    LookLinked {
        links: Links,
    },
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

/// What a breaker of ours has made of the number of links.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Links {
    Explained,
    Young,
    Old,
}

/// What a name says of its owner: dead, at work on the file, or nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Judged {
    Dead,
    Breaks,
    Nothing,
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

    /// The system calls of a process's next step, as far as they decide anything; ours.
    pub(crate) fn calls(&self, state: &State<At>, process: Process) -> Vec<&'static str> {
        let Local { at, file, .. } = *state.local(process);
        let judging = |name| match name {
            Name::Litter => vec![],
            name if file.is_some_and(|file| state.has_name(file, name)) => vec!["newfstatat", "pidfd_open"],
            name if state.look_up(name).is_some() => vec!["newfstatat"],
            _ => vec![],
        };
        match at {
            At::Open | At::ClearOpen { .. } | At::Create => vec!["openat"],
            At::Flock | At::Share | At::Unshare | At::ClearFlock { .. } | At::FlockOwn | At::UnlockHeld => {
                vec!["flock"]
            }
            At::UnlockStale { .. } if file.is_some_and(|file| state.file(file).locked_by == Some(process as u8)) => {
                vec!["flock"]
            }
            At::Read => vec!["pread64"],
            At::AskPid => vec!["pidfd_open"],
            At::LookAgain | At::CountLinks | At::LookUnbroken { .. } | At::LookLinked { .. } | At::LookPublished => {
                vec!["newfstatat"]
            }
            At::LookForOwnLink => vec!["newfstatat", "newfstatat"],
            At::AskAge => vec!["openat", "flock"],
            At::LookForOthers { .. } => std::iter::once("getdents64").chain(self.names().flat_map(judging)).collect(),
            At::ListLinks { .. } => vec!["getdents64"],
            At::JudgeLink { number, .. } => self.names().nth(number.into()).map_or(vec![], judging),
            At::LinkBreaking { .. } | At::Publish => vec!["linkat"],
            At::RemoveDeadLink { .. } | At::UnlinkStale | At::UnlinkBreaking { .. } | At::UnlinkHeld => {
                vec!["unlinkat"]
            }
            At::ClearUnlink { .. } => vec!["newfstatat", "unlinkat", "flock"],
            At::Write => vec!["write"],
            // LockGuard::release looks at the path, too: its directory may be another by now.
            At::LookHeld => vec!["newfstatat", "newfstatat"],
            _ => vec![],
        }
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
        let mut next = *state;
        next.file_mut(inode).is_old = true;
        (!state.file(inode).is_old).then_some(next)
    }

    /// One system call of one process.
    pub(crate) fn step(&self, state: &mut State<At>, process: Process) {
        match self.kinds[process] {
            Kind::Ours => self.step_ours(state, process),
            kind => step_peer(kind, state, process),
        }
    }

    /// The names that `others_links` judges, one after the other.
    fn names(&self) -> impl Iterator<Item = Name> {
        let peers = (0..self.kinds.len()).filter(|&process| self.kinds[process] != Kind::Ours);
        let names = peers.flat_map(|peer| [Name::Temporary(peer as u8), Name::Second(peer as u8)]);
        names.chain([Name::Litter])
    }

    fn judge(&self, state: &State<At>, file: Inode, name: Name) -> Judged {
        let is_alive = match name {
            Name::Temporary(peer) | Name::Second(peer) => state.local(peer.into()).at != At::Dead,
            _ => false,
        };
        match name {
            _ if !state.has_name(file, name) => Judged::Nothing,
            Name::Second(_) if is_alive && !self.without.look_for_breakers => Judged::Breaks,
            _ if is_alive => Judged::Nothing,
            _ => Judged::Dead,
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
                    _ if links == 1 => At::LinkBreaking { links: Links::Explained },
                    _ if self.without.purge => At::UnlockStale { then: Then::GiveUp },
                    _ => At::LookForOwnLink,
                }
            }
            At::LookForOwnLink => {
                let links = std::mem::take(&mut state.local_mut(process).links);
                match state.look_up(Name::Breaking) == Some(file()) {
                    true if links == 2 => At::LookLinked { links: Links::Explained },
                    _ => At::AskAge,
                }
            }
            At::AskAge if state.file(file()).is_old => At::LookForOthers { links: Links::Old },
            At::AskAge => At::LookForOthers { links: Links::Young },
            At::LookForOthers { links } => {
                let judged = |wanted| self.names().any(|name| self.judge(state, file(), name) == wanted);
                match !judged(Judged::Breaks) && (links == Links::Old || judged(Judged::Dead)) {
                    true if state.look_up(Name::Breaking) == Some(file()) => At::ListLinks { links },
                    true => At::LinkBreaking { links },
                    false => At::UnlockStale { then: Then::GiveUp },
                }
            }
            At::LinkBreaking { links } => match state.link(file(), Name::Breaking) {
                true if links == Links::Explained => At::LookLinked { links },
                true => At::ListLinks { links },
                false => At::ClearOpen { held: false },
            },
            At::ListLinks { links } => At::JudgeLink { links, number: 0, dead: 0 },
            At::JudgeLink { links, number, dead } => match self.names().nth(number.into()) {
                Some(name) => match self.judge(state, file(), name) {
                    Judged::Breaks => At::UnlinkBreaking { then: Then::GiveUp },
                    Judged::Dead => At::JudgeLink { links, number: number + 1, dead: dead | 1 << number },
                    Judged::Nothing => At::JudgeLink { links, number: number + 1, dead },
                },
                None => At::LookUnbroken { links, dead },
            },
            At::LookUnbroken { links, dead } => match names_lock(state, file()) || self.without.look_before_purge {
                true => after_removal(links, dead),
                false => At::UnlinkBreaking { then: Then::GiveUp },
            },
            At::RemoveDeadLink { links, dead } => {
                let number = dead.trailing_zeros();
                match self.names().nth(number as usize).expect("has been judged") {
                    Name::Litter => state.remove_litter(file()),
                    name => state.unlink(name),
                }
                after_removal(links, dead & !(1 << number))
            }
            At::LookLinked { links } => {
                let alone = names_lock(state, file()) && (links == Links::Old || state.links(file()) == 2);
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

fn after_removal(links: Links, dead: u8) -> At {
    if dead == 0 { At::LookLinked { links } } else { At::RemoveDeadLink { links, dead } }
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
        At::PeerLink if state.look_up(temporary) != Some(made()) => At::PeerDropTemporary { held: false },
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
