//! The administrator of a cluster of etcd, on a host of his own, which no fault cuts off.

use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use crate::history::{Hit, LOCKS, Reach};
use crate::network::within;
use crate::schedule::Fault;
use crate::stage::Stage;

/// Those that the clients come as. Their passwords are their names.
pub(crate) const USERS: [&str; 2] = ["app", "other"];

#[derive(Clone)]
pub(crate) struct Desk {
    pub(crate) namespace: String,
    pub(crate) endpoints: Vec<String>,
    pub(crate) has_users: bool,
}

/// From the fields that etcdctl prints.
pub(crate) fn revision(fields: &str) -> Option<u64> {
    fields.lines().find_map(|line| line.strip_prefix("\"Revision\" : "))?.parse().ok()
}

impl Desk {
    /// What the administrator's command prints, if it succeeds.
    pub(crate) fn ask(&self, arguments: &str) -> Option<String> {
        self.ask_at(&self.endpoints.join(","), arguments)
    }

    pub(crate) fn ask_at(&self, endpoints: &str, arguments: &str) -> Option<String> {
        let output = self.try_at(endpoints, arguments);
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
    }

    fn try_at(&self, endpoints: &str, arguments: &str) -> Output {
        let mut command = within(&self.namespace, "etcdctl");
        command.env("ETCDCTL_API", "3").args(["--endpoints", endpoints, "--command-timeout=4s", "--dial-timeout=1s"]);
        if self.has_users {
            command.args(["--user", "root:root"]);
        }
        command.args(arguments.split(' ')).stdin(Stdio::null()).output().unwrap()
    }

    pub(crate) fn insist(&self, arguments: &str) -> String {
        let began = Instant::now();
        loop {
            match self.ask(arguments) {
                Some(answer) => return answer,
                None => assert!(began.elapsed() < Duration::from_secs(60), "etcdctl {arguments} fails"),
            }
        }
    }

    pub(crate) fn keys(&self, prefix: &str) -> Vec<String> {
        let keys = self.insist(&format!("get --prefix --keys-only {prefix}"));
        keys.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
    }

    /// The key of the holder of a lock.
    fn holders_key(&self, lock: &str) -> Option<String> {
        let order = "--sort-by=CREATE --order=ASCEND --limit=1 --keys-only --prefix";
        let key = self.ask(&format!("get {order} {lock}/"))?;
        Some(key.lines().next()?.to_owned()).filter(|key| !key.is_empty())
    }

    /// Deletes the key of the holder. A command that has had no answer may be carried out later, so it is repeated:
    /// then it is known since when the lock is free.
    fn delete_key(&self, lock: &str) {
        if let Some(key) = self.holders_key(lock) {
            self.insist(&format!("del {key}"));
        }
    }

    /// The clients of a user may look at their keys no more, and some seconds later these are deleted.
    fn revoke_role(&self, user: &str) {
        let _ = self.ask(&format!("user revoke-role {user} app"));
        std::thread::sleep(Duration::from_secs(4));
        LOCKS.into_iter().for_each(|lock| self.delete_key(lock));
    }

    /// Ends the lease of the holder, likewise, if it has not ended by itself.
    fn revoke_lease(&self, lock: &str) {
        let key = self.holders_key(lock).unwrap_or_default();
        let Some((_, lease)) = key.rsplit_once('/') else { return };
        let began = Instant::now();
        loop {
            let output = self.try_at(&self.endpoints.join(","), &format!("lease revoke {lease}"));
            let is_gone = String::from_utf8_lossy(&output.stderr).contains("lease not found");
            if is_gone || output.status.success() {
                return;
            }
            assert!(began.elapsed() < Duration::from_secs(60), "{output:?}");
        }
    }

    /// The number of the leader, and the ID of another member.
    pub(crate) fn leader(&self) -> Option<(usize, String)> {
        let (mut leader, mut other) = (None, None);
        for (member, endpoint) in self.endpoints.iter().enumerate() {
            let Some(status) = self.ask_at(endpoint, "endpoint status") else { continue };
            let fields: Vec<&str> = status.trim().split(", ").collect();
            match fields[4] {
                "true" => leader = Some(member),
                _ => other = Some(fields[1].to_owned()),
            }
        }
        Some((leader?, other?))
    }

    /// All but the last revision. If that one is a deletion, a member that is killed meanwhile can forget it (issue 17780 of
    /// etcd).
    pub(crate) fn compact(&self) -> Option<()> {
        let last = revision(&self.ask("get x -w fields")?)?;
        self.ask(&format!("compact {}", last - 1)).map(drop)
    }
}

fn user(target: usize) -> &'static str {
    USERS[target % USERS.len()]
}

impl Stage for Desk {
    fn begin(&mut self, fault: Fault, target: usize) -> Hit {
        let lock = LOCKS[target % LOCKS.len()];
        match fault {
            Fault::DeleteKey => self.delete_key(lock),
            Fault::RevokeLease => self.revoke_lease(lock),
            _ => self.revoke_role(user(target)),
        }
        Hit { what: lock.to_owned(), reach: Reach::Nobody }
    }

    fn end(&mut self, fault: Fault, target: usize) {
        if fault == Fault::RevokeRole {
            self.insist(&format!("user grant-role {} app", user(target)));
        }
    }
}
