//! Locks on real PostgreSQL servers, which the tests start themselves. They need Debian's postgresql,
//! pgbouncer, pgpool2 and haproxy.

#[path = "../it/behaviour.rs"]
mod behaviour;
mod between;
#[path = "../servers/evil_words.rs"]
mod evil_words;
mod exclusion;
mod fencing;
mod fork;
mod hostile;
mod kinds;
#[path = "../servers/last_held.rs"]
mod last_held;
#[path = "../it/late.rs"]
mod late;
mod logging;
mod login;
mod loss;
mod many;
mod middle;
mod namespaces;
mod partition;
mod pools;
#[path = "../servers/proxy.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod proxy;
mod refused;
mod runtimes;
mod scram;
mod server;
mod sessions;
#[path = "../servers/set_uid.rs"]
mod set_uid;
#[path = "../it/shared.rs"]
mod shared;
#[path = "../servers/stopped_driver.rs"]
mod stopped_driver;
#[path = "../it/support.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod support;
mod tls;
mod waiting;
#[path = "../servers/whole_log.rs"]
mod whole_log;
mod words;
