//! The protocols as programs: each step is one system call.
//!
//! A crash is possible before every step, a pause of any length between any two, and a process may start again at any
//! time, with the PID of its last life or with another.

use super::state::{Local, Name, PROCESSES, Process, State};

/// Whose program a process runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Ours,
    /// Ours, where no file can be without a name, as on some file systems of Linux.
    Named,
    /// Ours, where besides a file can be linked by a name only, as on other systems.
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
    pub(crate) look_at_creating: bool,
    pub(crate) flock_before_clear: bool,
    pub(crate) look_published: bool,
    pub(crate) unlink_before_unlock: bool,
}

/// Where a process is: its next system call. Ours name the function in src/engine/file/shlock/ that makes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
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
    /// `give_way`, `names`: fstatat of the private name.
    GiveWay,
    /// `break_stale`: unlinkat of the private name under which the stale file was made.
    UnlinkCreated {
        links: Links,
    },
    /// `clear`: openat of the private name; then what called it goes on.
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Links {
    Explained,
    Young,
    Old,
}

/// Which private name is cleared, and for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Clear {
    /// The breakers', by the new holder.
    AsHolder,
    /// The breakers', by the next of them.
    ToBreak,
    /// The makers', by the next of them.
    ToCreate(Purpose),
}

impl Clear {
    pub(super) fn name(self) -> Name {
        match self {
            Self::AsHolder | Self::ToBreak => Name::Breaking,
            Self::ToCreate(_) => Name::Creating,
        }
    }
}

/// What a file is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Purpose {
    Lock,
    /// To compare the stale file's age with.
    Age,
}

/// How it goes on when a file that was made has lost its private name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Created {
    Published,
    InVain,
    Compared(Links),
}

/// How a try goes on after it has let go of what it had open.
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
        assert!(kinds.is_sorted(), "so that processes of one kind can change places");
        Self { kinds: kinds.to_vec(), without: Without::default() }
    }

    pub(crate) fn start(&self) -> State<At> {
        State::new(self.kinds.iter().map(|_| At::Idle))
    }

    /// The same state for states between which nothing makes a difference. Two processes of ours that change places are
    /// such; of peers' processes the names tell which is which.
    pub(crate) fn normal(&self, state: &State<At>) -> State<At> {
        let mut order = std::array::from_fn(|process| process);
        order[..self.kinds.len()].sort_by_key(|&process| match self.kinds[process] {
            kind if kind.is_ours() => (kind, Some(state.local(process).at), 0),
            kind => (kind, None, process),
        });
        state.reordered(order).normal(At::compares_ages)
    }

    /// Two holders, or a holder of ours whose name is not his any more.
    pub(crate) fn is_violated(&self, state: &State<At>) -> bool {
        let held = |(process, local): (Process, &Option<Local<At>>)| {
            local.filter(|local| local.at.is_held()).map(|local| (process, local))
        };
        let holders: Vec<_> = state.processes.iter().enumerate().filter_map(held).collect();
        let has_name = |local: &Local<At>| local.made.is_some() && state.look_up(Name::Lock) == local.made;
        holders.len() > 1 || holders.iter().any(|(process, local)| self.kinds[*process].is_ours() && !has_name(local))
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
            kind if kind.is_ours() => self.step_ours(state, process),
            kind => super::peers::step_peer(kind, state, process),
        }
    }
}

/// Whether a process has this PID.
pub(super) fn is_alive(state: &State<At>, pid: Option<u8>) -> bool {
    pid.is_some_and(|process| state.local(process.into()).at != At::Dead)
}
