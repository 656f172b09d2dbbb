//! What file system a file is on (Linux).
//!
//! statfs(2) alone does not tell: 9P passes on what its server says, so a client sees ext4's magic number over a network.
//! The type in /proc/self/mountinfo (proc_pid_mountinfo(5)) is what the kernel itself has mounted.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::Mutex;

use rustix::fs::{AtFlags, Statx, StatxFlags, statx};
use rustix::io::retry_on_intr;

use super::imp;
use crate::sys::types::FileSystem;

/// What file system an open file is on.
pub(crate) fn filesystem(file: impl AsFd) -> io::Result<FileSystem> {
    filesystem_of(file.as_fd())
}

fn filesystem_of(file: BorrowedFd<'_>) -> io::Result<FileSystem> {
    let claimed = by_magic(retry_on_intr(|| rustix::fs::fstatfs(file))?.f_type as u32);
    if matches!(claimed, FileSystem::Other(_)) {
        return Ok(claimed);
    }
    Ok(match mounted_type(file)? {
        Mounted::Type(name) => by_name(&name),
        Mounted::Local => claimed,
        Mounted::Unknown => FileSystem::Unknown,
    })
}

/// What file system a path leads to.
pub(crate) fn filesystem_at(path: &Path) -> io::Result<FileSystem> {
    filesystem(super::Dir::open(path)?)
}

/// File systems by the magic numbers of statfs(2). A name here means that their `flock` is this machine's own, if the
/// file system is what it says.
fn by_magic(magic: u32) -> FileSystem {
    match magic {
        // tmpfs, ramfs
        0x0102_1994 | 0x8584_58f6 => FileSystem::Memory,
        // ext2 to ext4, XFS, Btrfs, overlayfs, F2FS, ZFS, bcachefs, JFS, ReiserFS, NILFS
        0xef53 | 0x5846_5342 | 0x9123_683e | 0x794c_7630 | 0xf2f5_2010 | 0x2fc1_2fc1 | 0xca45_1a4e | 0x3153_464a
        | 0x5265_4973 | 0x3434 => FileSystem::Local,
        0x6969 => FileSystem::Other("NFS".into()),
        0xff53_4d42 | 0xfe53_4d42 | 0x517b => FileSystem::Other("SMB".into()),
        0x6573_5546 => FileSystem::Other("FUSE".into()),
        0x4d44 => FileSystem::Other("FAT".into()),
        0x2011_bab0 => FileSystem::Other("exFAT".into()),
        0x0102_1997 => FileSystem::Other("9P".into()),
        0x00c3_6400 => FileSystem::Other("Ceph".into()),
        0x0bd0_0bd0 => FileSystem::Other("Lustre".into()),
        0x0116_1970 => FileSystem::Other("GFS2".into()),
        magic => FileSystem::Other(format!("a file system of type {magic:#x}")),
    }
}

/// The same by the type that is mounted.
fn by_name(name: &str) -> FileSystem {
    match name {
        "tmpfs" | "ramfs" | "rootfs" => FileSystem::Memory,
        "ext2" | "ext3" | "ext4" | "xfs" | "btrfs" | "overlay" | "f2fs" | "zfs" | "bcachefs" | "jfs" | "reiserfs"
        | "nilfs2" => FileSystem::Local,
        "9p" => FileSystem::Other("9P".into()),
        name => FileSystem::Other(name.to_owned()),
    }
}

enum Mounted {
    Type(String),
    /// Its device is a disk of this machine, so statfs(2) answers for it.
    Local,
    Unknown,
}

/// The types of mounts by their unique IDs, which the kernel never uses again. Empty before Linux 6.8.
static TYPES: Mutex<Vec<(u64, String)>> = Mutex::new(Vec::new());

/// `STATX_MNT_ID_UNIQUE` (statx(2)).
const UNIQUE_ID: StatxFlags = StatxFlags::from_bits_retain(0x4000);

fn mounted_type(file: BorrowedFd<'_>) -> io::Result<Mounted> {
    let look = |flags| retry_on_intr(|| statx(file, "", AtFlags::EMPTY_PATH, flags));
    let found = match look(StatxFlags::BASIC_STATS | UNIQUE_ID) {
        Ok(found) => found,
        // Before Linux 4.11, or forbidden in a sandbox.
        Err(_) => {
            let device = rustix::fs::fstat(file)?.st_dev;
            return Ok(read_type(&|mount| mount.device == (rustix::fs::major(device), rustix::fs::minor(device))));
        }
    };
    // A disk has a major number of its own. Everything that is not on a disk of this machine has 0.
    if found.stx_dev_major != 0 {
        return Ok(Mounted::Local);
    }
    // qemu-user sets the flag and answers 0; the kernel's unique IDs begin at 2³¹.
    let unique = Some(found.stx_mnt_id).filter(|&id| found.stx_mask & UNIQUE_ID.bits() != 0 && id >= 1 << 31);
    // Another thread may have had the mutex when this process was forked, so nobody waits for it.
    let known = |id: &u64| TYPES.try_lock().ok()?.iter().find(|(known, _)| known == id).map(|(_, name)| name.clone());
    if let Some(name) = unique.as_ref().and_then(known) {
        return Ok(Mounted::Type(name));
    }
    let by_id = match look(StatxFlags::MNT_ID) {
        Ok(Statx { stx_mask, stx_mnt_id, .. }) if stx_mask & StatxFlags::MNT_ID.bits() != 0 => {
            read_type(&|mount| mount.id == stx_mnt_id)
        }
        _ => Mounted::Unknown,
    };
    let mounted = match by_id {
        Mounted::Unknown => read_type(&|mount| mount.device == (found.stx_dev_major, found.stx_dev_minor)),
        by_id => by_id,
    };
    if let (Some(id), Mounted::Type(name), Ok(mut types)) = (unique, &mounted, TYPES.try_lock()) {
        types.push((id, name.clone()));
    }
    Ok(mounted)
}

/// One line of mountinfo.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mount<'a> {
    id: u64,
    device: (u32, u32),
    kind: &'a str,
}

impl<'a> Mount<'a> {
    /// 36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw
    ///
    /// Any user can choose the names in it, by a mount with FUSE. The kernel escapes spaces, tabs, line feeds and
    /// backslashes in them, and no other bytes.
    pub(super) fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(' ');
        let id = fields.next()?.parse().ok()?;
        let (major, minor) = fields.nth(1)?.split_once(':')?;
        let device = (major.parse().ok()?, minor.parse().ok()?);
        let kind = fields.skip(3).skip_while(|&field| field != "-").nth(1)?;
        Some(Self { id, device, kind })
    }
}

fn read_type(is_it: &dyn Fn(&Mount) -> bool) -> Mounted {
    let Some(mounts) = imp::read_lossy("/proc/self/mountinfo") else { return Mounted::Unknown };
    match mounts.lines().filter_map(Mount::parse).find(is_it) {
        Some(mount) => Mounted::Type(mount.kind.to_owned()),
        None => Mounted::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_free_flock_proves_something_only_where_it_is_known_to() {
        for local in [0xef53, 0x0102_1994, 0x5846_5342, 0x794c_7630] {
            assert!(by_magic(local).flock_is_proof(), "{}", by_magic(local));
        }
        for other in [0x6969, 0xff53_4d42, 0x6573_5546, 0x0102_1997, 0x1234_5678] {
            assert!(!by_magic(other).flock_is_proof(), "{}", by_magic(other));
        }
        for local in ["ext4", "tmpfs", "overlay"] {
            assert!(by_name(local).flock_is_proof(), "{local}");
        }
        for other in ["9p", "nfs4", "cifs", "fuse.sshfs", "virtiofs", "ecryptfs"] {
            assert!(!by_name(other).flock_is_proof(), "{other}");
        }
    }

    #[test]
    fn smb_has_several_names() {
        assert!([by_magic(0xff53_4d42), by_name("cifs")].iter().all(FileSystem::is_smb));
        assert!(![by_magic(0x6969), by_name("nfs4"), FileSystem::Local].iter().any(FileSystem::is_smb));
    }

    #[test]
    fn mountinfo_lines() {
        let line = "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 shared:2 - ext3 /dev/root rw,errors=continue";
        assert_eq!(Mount::parse(line), Some(Mount { id: 36, device: (98, 0), kind: "ext3" }));
        let plain = "97 29 0:48 / /mnt rw - 9p share rw,trans=virtio";
        assert_eq!(Mount::parse(plain), Some(Mount { id: 97, device: (0, 48), kind: "9p" }));
        let hostile = "97 29 0:48 / /mnt/\u{fffd}\u{c}-\u{c}tmpfs\r rw - fuse.x\u{fffd} - rw";
        assert_eq!(Mount::parse(hostile), Some(Mount { id: 97, device: (0, 48), kind: "fuse.x\u{fffd}" }));
        for broken in ["broken", "", " ", "97 29 0 / /mnt rw - 9p share rw", "97 29 0:48 / /mnt rw 9p share rw"] {
            assert_eq!(Mount::parse(broken), None, "{broken}");
        }
    }

    /// 9P of a server's ext4 has ext4's magic number and an anonymous device.
    #[test]
    fn what_is_mounted_overrules_what_statfs_says() {
        let memory = tempfile::tempdir_in("/dev/shm").unwrap();
        let open = super::super::Dir::open(memory.path()).unwrap();
        for _first_read_then_remembered in 0..2 {
            assert!(matches!(mounted_type(open.as_fd()), Ok(Mounted::Type(name)) if name == "tmpfs"));
        }
        assert_eq!(filesystem(&open).unwrap(), FileSystem::Memory);
    }
}
