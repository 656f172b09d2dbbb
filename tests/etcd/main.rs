//! Locks in a real cluster of etcd. Needs Debian's etcd-server, etcd-client and Go packages, nginx, haproxy, openssl,
//! strace, and root for networks of its own.

mod access;
mod cluster;
mod faults;
mod interop;
mod kinds;
mod lifetimes;
mod logs;
mod many;
mod meddler;
mod network;
mod partitions;
mod proxies;
mod refusals;
mod transit;
mod words;

#[path = "../servers/evil_words.rs"]
mod evil_words;
#[path = "../servers/last_held.rs"]
mod last_held;
#[path = "../servers/nginx.rs"]
mod nginx;
#[path = "../servers/proxy.rs"]
mod proxy;
#[path = "../servers/set_uid.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod set_uid;
#[path = "../servers/stopped_driver.rs"]
mod stopped_driver;
#[path = "../servers/whole_log.rs"]
mod whole_log;

// The behaviour of every kind.
#[path = "../it/behaviour.rs"]
mod behaviour;
#[path = "../it/blocking.rs"]
mod blocking;
#[path = "../it/fork.rs"]
mod fork;
#[path = "../it/handover.rs"]
mod handover;
#[path = "../it/late.rs"]
mod late;
#[path = "../it/semaphore.rs"]
mod semaphore;
#[path = "../it/shared.rs"]
mod shared;
#[path = "../it/support.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod support;
