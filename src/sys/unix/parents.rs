//! The way to a directory in which this process makes something that its caller asked for: a directory, or a file with
//! permissions that the umask does not limit.
//!
//! Who owns a directory can put a symbolic link into it, and so choose where a process of another user makes it. So the
//! way is walked step by step, without following links, and each directory is made in the one that is open. A link is
//! followed only if it and its directory belong to root or to our effective user. The kernel's rule for sticky
//! directories is similar (`fs.protected_symlinks`, proc_sys_fs(5)), and so is that of systemd for the paths of
//! tmpfiles.d(5).

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::{Errno, retry_on_intr};

use super::imp;

/// So many links may be on one way, as for the kernel (path_resolution(7)).
const LINKS: u32 = 40;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Missing {
    /// A missing directory is made.
    Make,
    Error,
}

/// Opens the directory at an absolute path.
pub(super) fn walk(path: &Path, missing: Missing) -> io::Result<OwnedFd> {
    let mut steps: VecDeque<OsString> = steps(path).collect();
    let (mut dir, mut walked) = (open(CWD, "/")?, PathBuf::from("/"));
    let mut links = 0;
    while let Some(step) = steps.pop_front() {
        walked.push(&step);
        let error = match enter(&dir, &step, missing) {
            Ok(next) => {
                dir = next;
                continue;
            }
            Err(error) => error,
        };
        // What opens no link answers with one of these for a link.
        let link = match error {
            Errno::NOTDIR | Errno::LOOP | Errno::MLINK => imp::read_link(&dir, &step)?,
            _ => None,
        };
        let (owner, target) = link.ok_or(error)?;
        let owners = [owner, rustix::fs::fstat(&dir)?.st_uid];
        if let Some(other) = owners.into_iter().find(|&owner| !is_trusted(owner)) {
            return Err(refused(&walked, other));
        }
        links += 1;
        if links > LINKS {
            return Err(Errno::LOOP.into());
        }
        if target.is_absolute() {
            (dir, walked) = (open(CWD, "/")?, PathBuf::from("/"));
        } else {
            walked.pop();
        }
        self::steps(&target).rev().for_each(|step| steps.push_front(step));
    }
    Ok(dir)
}

/// The names on a way, and `..`, which is the real parent of the directory where it is met.
fn steps(path: &Path) -> impl DoubleEndedIterator<Item = OsString> {
    path.components().filter_map(|component| match component {
        Component::Normal(_) | Component::ParentDir => Some(component.as_os_str().to_owned()),
        Component::Prefix(_) | Component::RootDir | Component::CurDir => None,
    })
}

/// Opens the directory with this name, and makes it first if it is to be made.
fn enter(dir: &OwnedFd, name: &OsStr, missing: Missing) -> rustix::io::Result<OwnedFd> {
    match open(dir, name) {
        Err(Errno::NOENT) if missing == Missing::Make => {
            match retry_on_intr(|| rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(0o755))) {
                // Somebody else has just made it, or put something else there.
                Ok(()) | Err(Errno::EXIST) => open(dir, name),
                Err(error) => Err(error),
            }
        }
        opened => opened,
    }
}

fn open(dir: impl AsFd, name: impl rustix::path::Arg + Copy) -> rustix::io::Result<OwnedFd> {
    let flags = imp::DIRECTORY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    retry_on_intr(|| rustix::fs::openat(&dir, name, flags, Mode::empty()))
}

fn is_trusted(owner: u32) -> bool {
    owner == 0 || owner == rustix::process::geteuid().as_raw()
}

fn refused(link: &Path, owner: u32) -> io::Error {
    let text = format!("{link:?} is a symbolic link that the user with ID {owner} can change");
    io::Error::new(io::ErrorKind::PermissionDenied, text)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_way_leads_where_the_system_leads_it() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().canonicalize().unwrap();
        let made = |path: &str| walk(&top.join(path), Missing::Make).map(|_| ());
        made("a/b/c").unwrap();
        symlink("b", top.join("a/relative")).unwrap();
        symlink(top.join("a/relative/.."), top.join("absolute")).unwrap();
        symlink("circle", top.join("circle")).unwrap();
        std::fs::write(top.join("file"), "").unwrap();
        made("a/relative/d").unwrap();
        made("absolute/./e/../f").unwrap();
        made("a/b").unwrap();
        for expected in ["a/b/d", "a/e", "a/f"] {
            assert!(top.join(expected).is_dir(), "{expected}");
        }
        assert_eq!(made("circle/x").unwrap_err().raw_os_error(), Some(Errno::LOOP.raw_os_error()));
        assert_eq!(made("file/x").unwrap_err().kind(), io::ErrorKind::NotADirectory);
        let missing = walk(&top.join("a/missing"), Missing::Error).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
        assert!(!top.join("a/missing").exists());
    }
}
