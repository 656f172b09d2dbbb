//! The protocols of the other programs, the peers.

use super::protocol::{At, Kind, is_alive};
use super::state::{Inode, Local, Name, Process, Record, State};

/// INN 2.8's shlock.c, NetBSD's shlock.c 1.15, and PEAK's `SHLockFile`. In the model, the lock tool and the script that
/// uses it are one process.
pub(super) fn step_peer(kind: Kind, state: &mut State<At>, process: Process) {
    let (temporary, second) = (Name::Temporary(process as u8), Name::Second(process as u8));
    let Local { at, file, created, .. } = *state.local(process);
    let file = || file.expect("the lock file is open");
    let created = || created.expect("the peer has created a temporary file");
    let next = match at {
        At::Idle => At::PeerCreate,
        At::PeerCreate => {
            state.unlink(temporary);
            let inode: Inode = state.create();
            state.link(inode, temporary);
            state.local_mut(process).created = Some(inode);
            At::PeerWrite
        }
        At::PeerWrite => {
            state.file_mut(created()).record = Record::Foreign(Some(process as u8));
            // All earlier changes are older than this file.
            if let Some(lock) = state.look_up(Name::Lock) {
                state.file_mut(lock).changed_since &= !(1 << process);
            }
            At::PeerLink
        }
        At::PeerLink if state.look_up(temporary) != Some(created()) => At::PeerDropTemporary { held: false },
        At::PeerLink => match (state.link(created(), Name::Lock), kind) {
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
        At::PeerCheckOwn => At::PeerDropTemporary { held: state.links(created()) == 2 },
        At::PeerDropTemporary { held } => {
            state.unlink(temporary);
            state.local_mut(process).file = None;
            state.local_mut(process).links = 0;
            if !held {
                state.local_mut(process).created = None;
            }
            if held { At::Held } else { At::Idle }
        }
        At::Held => At::PeerUnlinkHeld,
        At::PeerUnlinkHeld => {
            if state.look_up(Name::Lock) == state.local(process).created {
                state.unlink(Name::Lock);
            }
            state.local_mut(process).created = None;
            At::Idle
        }
        other => unreachable!("{other:?} is no step of a peer"),
    };
    state.local_mut(process).at = next;
}
