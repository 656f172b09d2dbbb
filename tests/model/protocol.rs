//! The protocols as programs: each step is one system call.
//!
//! Before every step a process can crash. Between two steps it can pause for any time. A crashed process can start
//! again at any time, with its old PID or with another one.

use super::state::{Local, Name, PROCESSES, Process, Record, State};

/// The program that a process runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Ours,
    /// Ours, on a file system where a file cannot be without a name, as on some of Linux.
    Named,
    /// Ours, where in addition a file can be linked only by its name, as on other systems.
    Portable,
    Inn,
    NetBsd,
    Peak,
}

impl Kind {
    pub(super) fn is_ours(self) -> bool {
        matches!(self, Self::Ours | Self::Named | Self::Portable)
    }

    pub(super) fn creates_named(self) -> bool {
        matches!(self, Self::Named | Self::Portable)
    }
}

/// The parts of our protocol that can be left out, to test that the search notices.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Without {
    /// The check after flock, in any form, that the name still leads to the locked file.
    pub(crate) look_after_flock: bool,
    /// The link to a private name, and the count of links.
    pub(crate) link_discipline: bool,
    /// The removal of dead breakers' links, and the grace after which links do not count.
    pub(crate) purge: bool,
    /// The check for a living breaker, if there are links that cannot be explained.
    pub(crate) look_for_breakers: bool,
    /// The check that the name still leads to the file, before dead processes' links are removed.
    pub(crate) look_before_purge: bool,
    pub(crate) flock_before_link: bool,
    pub(crate) look_at_creating: bool,
    pub(crate) flock_before_clear: bool,
    pub(crate) look_published: bool,
    pub(crate) unlink_before_unlock: bool,
    /// The rule that a new file is not the lock yet while a breaker works.
    pub(crate) look_for_a_breaker: bool,
}

/// The next system call of a process. For our processes, the comment names the function in src/engine/file/shlock/.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum At {
    Dead,
    Idle,
    Held,

    /// `open_lock`: openat of the name.
    Open,
    /// `contend`, `is_locked`: flock with LOCK_SH.
    Share,
    /// `is_locked`: flock with LOCK_UN.
    Unshare,
    /// `contend`, `names`: fstatat of the name.
    LookAgain,
    /// `read`: pread.
    Read {
        is_locked: bool,
    },
    /// `judge`: pidfd_open of a foreign record's PID.
    AskPid,
    /// `judge_locked`, `names`: fstatat of the breakers' private name.
    LookForBreaker,
    /// `judge_locked`, `names`: fstatat of the name.
    LookLocked,
    /// `break_stale`: fstat and fstatat.
    CountLinks,
    /// `break_stale`: fstatat of our two private names, if there is more than one link.
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
    /// `lock_linked`: flock with LOCK_EX.
    Flock {
        links: Links,
    },
    /// `lock_linked`, `names`: fstatat of the private name.
    LookFlocked {
        links: Links,
    },
    /// `break_stale`, `names`: fstatat of the private name under which the stale file was created, if it had that name.
    LookCreated {
        links: Links,
    },
    /// `others_links`: getdents64.
    ListLinks {
        links: Links,
    },
    /// `others_links`: fstatat and pidfd_open, name by name.
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
    /// `remove_dead_links`: unlinkat, one name of a dead process after the other.
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
    /// `break_stale`: unlinkat of the private name. Another process has the lock now, or the lock file can be created.
    UnlinkBreaking {
        then: Then,
    },
    /// `Probe::drop`: LOCK_UN, close.
    UnlockStale {
        then: Then,
    },
    /// `give_way`, `names`: fstatat of the private name.
    GiveWay,
    /// `break_stale`: unlinkat of the private name under which the stale file was created.
    UnlinkCreated {
        links: Links,
    },
    /// `clear`: openat of the private name. Its caller goes on afterwards.
    ClearOpen(Clear),
    /// `clear`: flock.
    ClearFlock(Clear),
    /// `clear`, `names`: fstatat.
    ClearLook(Clear),
    /// `clear`: unlinkat.
    ClearUnlink(Clear),
    /// `clear`, `Probe::drop`: LOCK_UN.
    ClearUnlock(Clear),
    /// `create`: openat with O_TMPFILE, or else O_EXCL with the private name.
    Create(Purpose),
    /// `create`: flock.
    FlockOwn(Purpose),
    /// `create`, `names`: fstatat of the private name.
    LookCreating(Purpose),
    /// `PrivateName::drop`: unlinkat.
    UnlinkCreating(Created),
    /// `acquire`: pwrite64 of the record, utimensat.
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

    /// A peer creates its temporary file and writes the record.
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
    /// PEAK unlinks the file without another check.
    PeakUnlinkStale,
}

/// How a breaker of ours has judged the number of links.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Links {
    Explained,
    Young,
    Old,
}

/// Which private name is cleared, and for which purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Clear {
    /// The breakers' private name, cleared by the process that has published a new file.
    Publisher,
    /// The breakers' private name, cleared by the next breaker.
    Breaker,
    /// The creators' private name, cleared by the next creator.
    Creator(Purpose),
}

impl Clear {
    pub(super) fn name(self) -> Name {
        match self {
            Self::Publisher | Self::Breaker => Name::Breaking,
            Self::Creator(_) => Name::Creating,
        }
    }
}

/// The purpose for which a file is created.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Purpose {
    Lock,
    /// To compare its age with that of the stale file.
    Age,
}

/// What a process does next when the private name of the file that it created is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Created {
    Published,
    InVain,
    Compared(Links),
}

/// What an attempt does next after it has closed its files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Then {
    LookAgain,
    Create,
    GiveUp,
}

impl At {
    pub(crate) fn is_held(self) -> bool {
        matches!(self, Self::Held | Self::LookHeld | Self::UnlinkHeld | Self::PeerUnlinkHeld)
    }

    /// Whether a peer has a temporary file, and will compare its age with that of the lock file.
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

/// Whether the protocol may rely on an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Chance {
    /// It will happen at some time.
    Course,
    /// It may happen, but the protocol cannot rely on it: a crash, or an old PID that is used again.
    Luck,
}

/// The processes that take part, and what is left out of our protocol.
#[derive(Clone, Debug)]
pub(crate) struct Model {
    pub(crate) kinds: Vec<Kind>,
    pub(crate) without: Without,
    /// Whether the owner of a stale file, or an administrator, can remove it.
    pub(crate) owner_removes: bool,
}

impl Model {
    pub(crate) fn new(kinds: &[Kind]) -> Self {
        assert!(kinds.len() <= PROCESSES);
        assert!(kinds.is_sorted(), "kinds must be sorted, so that processes of one kind can swap their numbers");
        Self { kinds: kinds.to_vec(), without: Without::default(), owner_removes: false }
    }

    pub(crate) fn start(&self) -> State<At> {
        State::new(self.kinds.iter().map(|_| At::Idle))
    }

    /// Maps equivalent states to one state. States are equivalent if two processes of ours swap their numbers. This is
    /// not so for peers' processes, because the names of their files contain their numbers.
    pub(crate) fn normal(&self, state: &State<At>) -> State<At> {
        let mut order = std::array::from_fn(|process| process);
        order[..self.kinds.len()].sort_by_key(|&process| match self.kinds[process] {
            kind if kind.is_ours() => (kind, Some(state.local(process).at), 0),
            kind => (kind, None, process),
        });
        state.reordered(order).normal(At::compares_ages)
    }

    /// There are two holders, or the name of the lock does not lead to our holder's file any more.
    pub(crate) fn is_violated(&self, state: &State<At>) -> bool {
        let held = |(process, local): (Process, &Option<Local<At>>)| {
            local.filter(|local| local.at.is_held()).map(|local| (process, local))
        };
        let holders: Vec<_> = state.processes.iter().enumerate().filter_map(held).collect();
        let has_name = |local: &Local<At>| local.created.is_some() && state.look_up(Name::Lock) == local.created;
        holders.len() > 1 || holders.iter().any(|(process, local)| self.kinds[*process].is_ours() && !has_name(local))
    }

    /// All events that can happen next.
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
                // The process starts again: with its old PID, on which no process can rely, or with a new one.
                with(At::Idle, Chance::Luck, &|_| true);
                with(At::Idle, Chance::Course, &|next| next.retire(process));
                continue;
            }
            // The end of an idle process is no crash.
            let chance = if local.at == At::Idle { Chance::Course } else { Chance::Luck };
            with(At::Dead, chance, &|next| {
                next.close_all(process);
                true
            });
            let mut next = *state;
            self.step(&mut next, process);
            successors.push((next, Chance::Course));
        }
        successors.extend(self.owner_removes(state).map(|next| (next, Chance::Luck)));
        successors.extend(self.ages(state).map(|next| (next, Chance::Course)));
        successors
    }

    /// The owner removes the file of a dead holder.
    fn owner_removes(&self, state: &State<At>) -> Option<State<At>> {
        let inode = state.look_up(Name::Lock).filter(|_| self.owner_removes)?;
        let is_stale = match state.file(inode).record {
            Record::Marked(pid) | Record::Foreign(pid) => !is_alive(state, pid),
            Record::Blank => false,
        };
        let mut next = *state;
        next.unlink(Name::Lock);
        is_stale.then_some(next)
    }

    /// The lock file gets older than thirty seconds.
    fn ages(&self, state: &State<At>) -> Option<State<At>> {
        let inode = state.look_up(Name::Lock)?;
        let mut next = *state;
        next.file_mut(inode).is_old = true;
        (!state.file(inode).is_old).then_some(next)
    }

    /// One system call of one process.
    pub(crate) fn step(&self, state: &mut State<At>, process: Process) {
        match self.kinds[process] {
            kind if kind.is_ours() => self.step_ours(state, process),
            kind => super::peers::step_peer(kind, state, process),
        }
    }
}

/// Whether a process has this PID.
pub(super) fn is_alive(state: &State<At>, pid: Option<u8>) -> bool {
    pid.is_some_and(|process| state.local(process.into()).at != At::Dead)
}
