//! What the crate needs of the operating system. This page is the contract; the switch below chooses who keeps it.
//!
//! Every descriptor and handle stays in this process: it is close-on-exec, or not inheritable, from its first instant.
//! No call follows a symbolic link in the last component of a path. No call waits for a lock that somebody else holds.
//!
//! **All platforms**
//! - [`open_existing`] opens the file of a lock for reading, and [`open_for_writing`] for reading and writing.
//!   [`reopen_for_writing`] opens a file for reading and writing that is open for reading. [`create`] creates the file.
//!   [`irregular_from_open`] tells from the error of an open what is at the path.
//! - [`create_directories`] makes a directory and its missing parents.
//! - [`stat`] looks at an open file, [`stat_path`] at a name. [`Stat::is_same_file`] tells files apart.
//!   [`Stat::irregular`] tells what is not a regular file. [`is_removed`] tells that a file has no name any more.
//! - [`read_at`] and [`write_at`] read and write at an offset, as much as one call does. [`truncate`] empties a file.
//! - [`try_lock_exclusive`], [`try_lock_shared`] and [`unlock`] use the lock that the kernel keeps on an open file. The
//!   kernel frees it when its holder dies. `false` means that somebody else holds it; every other failure is an error.
//!   [`is_lock_unsupported`] tells that the file system has no such locks, [`is_out_of_locks`] that it has no more of them.
//!   [`LOCKS_MAY_NEED_WRITERS`] tells that a lock may need a file that is open for writing. [`is_denied_by_lock`] tells
//!   from the error of any call that somebody else has the file locked.
//! - [`filesystem_at`] tells what file system a path is on. [`FileSystem::Memory`] and [`FileSystem::Local`] promise two
//!   things: a free lock proves that nobody on any machine holds it, and looking and locking touch only memory.
//! - [`uptime`] is the time on a clock that no step of the wall clock changes. Where the system permits, all processes of
//!   the machine see the same time.
//! - `time_since_boot` is the time on a clock that also goes on while the machine is suspended. It is for locks on servers.
//! - `host_name` is the name of this host, for the same.
//! - `is_set_uid` tells whether this program has more rights than the user who calls it, as secure_getenv(3) means it. It
//!   is for locks on servers too.
//! - [`current_pid`] tells which process this is, cheaply: a forked child is another one than its parent.
//! - [`process_existence`] tells whether a process with this PID exists, and whether it may be a zombie.
//!   [`describe_process`] tells its name and start, if it can be seen. [`listed_flock_holders`] tells which process the
//!   kernel lists as the one that locked a file.
//!
//! **Unix**, for the shlock protocol
//! - [`Dir`] is an open directory. `create_unnamed` makes a file that has no name before `link`; it fails where the
//!   platform or the file system has no such files. `link` gives an *open file* one more name, by its descriptor where
//!   the platform can.
//! - [`Stat`] also tells links, times and `is_another_users`.
//! - `filesystem` tells what file system an open file is on. `is_link_unsupported` tells that a file cannot have two
//!   names there, `is_lock_for_writers` that a file must be open for writing to be locked.
//!
//! **Linux**, for the wake-ups
//! - `process_descriptor` is a descriptor that becomes readable when a process ends. `has_event_poll` tells whether a
//!   runtime of this process can have Tokio's I/O driver.

#[cfg(any(feature = "postgres", feature = "etcd"))]
pub(crate) mod environment;
#[cfg(any(not(target_os = "linux"), tokio_lockfile_test_portable))]
mod no_list;
pub(crate) mod offer;
pub(crate) mod per_process;
pub(crate) mod process;
#[cfg(any(not(target_os = "linux"), tokio_lockfile_test_portable))]
mod sysinfo;
mod types;
mod watchdog;

pub(crate) use types::FileSystem;

#[cfg(any(not(target_os = "linux"), tokio_lockfile_test_portable))]
use self::sysinfo::describe_process;
#[cfg(any(not(target_os = "linux"), tokio_lockfile_test_portable))]
pub(crate) use no_list::*;

#[cfg(unix)]
mod unix;
#[cfg(unix)]
pub(crate) use unix::*;

#[cfg(windows)]
mod windows;
#[cfg(windows)]
pub(crate) use windows::*;

#[cfg(not(any(unix, windows)))]
compile_error!("tokio-lockfile supports Unix and Windows");
