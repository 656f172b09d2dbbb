//! What the value of a key tells of its owner, for people and for `holder()`.
//!
//! `exclusive pid=4321 since=1764187200 host=db1 name=backupd`: the name is the rest of the line, for it may contain blanks.
//! The keys of etcdctl and of Go's package have no value.

use std::time::{Duration, SystemTime};

use crate::sys::process;
use crate::words::holder::Holder;
use crate::words::mode::Mode;

/// How the values of this process begin and end.
#[derive(Debug)]
pub(super) struct Signature {
    pub(super) pid: u32,
    pub(super) host: String,
    pub(super) name: String,
}

impl Signature {
    pub(super) fn this_process() -> Self {
        let now = SystemTime::now();
        let process = process::this_process(now);
        let name = process.name().unwrap_or_default().to_owned();
        Self { pid: process.pid(), host: crate::sys::host_name(), name }
    }

    /// The value of a key. `since`: when the lock was acquired, if it is.
    pub(super) fn value(&self, mode: Mode, since: Option<SystemTime>) -> Vec<u8> {
        let mode = match mode {
            Mode::Exclusive => EXCLUSIVE,
            Mode::Shared => SHARED,
        };
        let since = since.and_then(|since| since.duration_since(SystemTime::UNIX_EPOCH).ok());
        let since = since.map(|since| format!(" since={}", since.as_secs())).unwrap_or_default();
        format!("{mode} pid={}{since} host={} name={}", self.pid, self.host, self.name).into_bytes()
    }
}

const EXCLUSIVE: &str = "exclusive";
const SHARED: &str = "shared";

/// Whether the value is that of a reader.
pub(super) fn is_shared(value: &[u8]) -> bool {
    value.strip_prefix(SHARED.as_bytes()).is_some_and(|rest| rest.starts_with(b" "))
}

/// The holder as the value tells it. PID 0 if it does not.
pub(super) fn holder(value: &[u8]) -> Holder {
    let unknown = Holder::new(0, None, None);
    let Ok(text) = std::str::from_utf8(value) else { return unknown };
    let (fields, name) = text.split_once(" name=").unwrap_or((text, ""));
    let mut fields = fields.split(' ');
    if !fields.next().is_some_and(|mode| [EXCLUSIVE, SHARED].contains(&mode)) {
        return unknown;
    }
    let (mut pid, mut host, mut since) = (0, None, None);
    for (field, value) in fields.filter_map(|field| field.split_once('=')) {
        match field {
            "pid" => pid = value.parse().unwrap_or_default(),
            "host" => host = some(value),
            "since" => since = value.parse().ok().and_then(at),
            _ => {}
        }
    }
    Holder::new(pid, some(name), since).on_host(host)
}

fn some(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

fn at(seconds: u64) -> Option<SystemTime> {
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let signature = Signature { pid: 4321, host: "db1".into(), name: "backup d name=x".into() };
        let since = at(1_764_187_200).unwrap();
        let value = signature.value(Mode::Exclusive, Some(since));
        assert_eq!(value, b"exclusive pid=4321 since=1764187200 host=db1 name=backup d name=x");
        let expected = Holder::new(4321, Some(signature.name.clone()), Some(since)).on_host(Some("db1".into()));
        assert_eq!(holder(&value), expected);
        assert_eq!(holder(&signature.value(Mode::Shared, None)).since(), None);
        assert!(is_shared(&signature.value(Mode::Shared, None)) && !is_shared(&value));
    }

    #[test]
    fn what_others_write_is_an_exclusive_holder_that_nobody_knows() {
        for value in [&b""[..], b"\xff", b"shared", b"sharedx pid=1", b"exclusive", b"exclusive pid=x", b"pid=1"] {
            assert_eq!(holder(value).pid(), 0);
            assert!(!is_shared(value));
        }
        assert_eq!(holder(b"exclusive pid=5 since=99999999999999999999 host=").to_string(), "pid 5");
    }
}
