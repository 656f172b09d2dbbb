//! What the environment demands of every connection, and this library cannot do.
//!
//! libpq would do it. So a lock that leaves it out in silence would go another way than the user believes.

use super::config::Environment;

/// The variables of libpq that a lock may not pass over, the values that ask for nothing more, and why others fail.
const UNMET: [(&str, &[&str], &str); 9] = [
    ("PGGSSENCMODE", &["disable", "prefer"], "there is no encryption by GSSAPI"),
    ("PGHOSTADDR", &[], "name the address as a host in the URL"),
    ("PGMINPROTOCOLVERSION", &["3.0"], "the protocol is 3.0"),
    ("PGSERVICE", &[], "no service file is read; name all in the URL"),
    ("PGSSLCERTMODE", &["disable", "allow"], "there are no client certificates"),
    ("PGSSLCRL", &[], "no revocation list is read"),
    ("PGSSLCRLDIR", &[], "no revocation list is read"),
    ("PGSSLMINPROTOCOLVERSION", &["TLSv1", "TLSv1.1", "TLSv1.2"], "TLS may be 1.2 or 1.3"),
    ("PGSSLNEGOTIATION", &["postgres"], "TLS is asked for as PostgreSQL does it"),
];

/// Fails if the environment demands what a lock cannot do. `has_directory`: whether a host is a Unix socket.
pub(super) fn check(environment: Environment<'_>, has_directory: bool) -> Result<(), String> {
    let refuse = |name, value, reason| Err(format!("{name}={value:?} of the environment cannot be met: {reason}"));
    for (name, harmless, reason) in UNMET {
        match environment(name) {
            Some(value) if !harmless.contains(&&*value) => return refuse(name, value, reason),
            _ => {}
        }
    }
    match environment("PGREQUIREPEER").filter(|_| has_directory) {
        Some(user) => refuse("PGREQUIREPEER", user, "the user of a server at a Unix socket is not looked at"),
        None => Ok(()),
    }
}
