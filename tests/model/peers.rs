//! The peers' protocols.

use super::protocol::{At, Kind, is_alive};
use super::state::{Inode, Local, Name, Process, Record, State};

/// INN 2.8's shlock.c, NetBSD's shlock.c 1.15, and PEAK's `SHLockFile`. The lock tool and the script for which it locks
/// are one process here.
pub(super) fn step_peer(kind: Kind, state: &mut State<At>, process: Process) {
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
