//! The password file of libpq (its manual: "The Password File").

use std::io;
use std::path::{Path, PathBuf};

use super::config::Host;
use super::environment::{self, Environment};
use crate::engine::server::said::Said;
use crate::util::blocking;
use crate::words::trace;

/// Where the file is: `PGPASSFILE`, or `.pgpass` in the home directory.
pub(super) fn path(environment: Environment<'_>) -> Option<PathBuf> {
    let named = environment("PGPASSFILE").map(PathBuf::from);
    named.or_else(|| environment::file_of_user(environment, "pgpass.conf", ".pgpass"))
}

/// The password for a user of a database, if the file has one. As libpq does, this passes over a file that others may
/// read, with a warning, and one that we cannot read.
pub(super) async fn look_up(path: PathBuf, host: &Host, database: &str, user: &str) -> io::Result<Option<String>> {
    let text = blocking::run(move || read(&path)).await?;
    // Libpq calls the directory of a Unix socket localhost.
    let name = if host.is_directory() { "localhost" } else { &host.name };
    let wanted = [name, &host.port.to_string(), database, user];
    Ok(text.as_deref().and_then(|text| find(text, wanted)))
}

fn read(path: &Path) -> Option<String> {
    static SAID: Said<PathBuf> = Said::new();
    if let Some(fault) = fault(&std::fs::metadata(path).ok()?) {
        if SAID.is_new(path.to_owned()) {
            trace::password_file_passed_over(path, fault);
        }
        return None;
    }
    // A line in another encoding says nothing of the other lines.
    Some(String::from_utf8_lossy(&std::fs::read(path).ok()?).into_owned())
}

/// Why libpq takes no password from this file, in its words.
#[cfg(unix)]
fn fault(metadata: &std::fs::Metadata) -> Option<&'static str> {
    let mode = std::os::unix::fs::PermissionsExt::mode(&metadata.permissions());
    match metadata.is_file() {
        false => Some("is not a plain file"),
        true if mode & 0o077 != 0 => Some("has group or world access; permissions should be u=rw (0600) or less"),
        true => None,
    }
}

#[cfg(not(unix))]
fn fault(_metadata: &std::fs::Metadata) -> Option<&'static str> {
    None
}

pub(super) fn find(text: &str, wanted: [&str; 4]) -> Option<String> {
    text.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
        let mut fields = fields(line);
        let matches = wanted.iter().all(|wanted| fields.next().is_some_and(|field| field == "*" || field == *wanted));
        matches.then(|| fields.next()).flatten().filter(|password| !password.is_empty())
    })
}

/// The fields between colons. A backslash in front of a colon or of a backslash takes its meaning away.
fn fields(line: &str) -> impl Iterator<Item = String> {
    let mut rest = Some(line.chars());
    std::iter::from_fn(move || {
        let chars = rest.as_mut()?;
        let mut field = String::new();
        loop {
            match chars.next() {
                None => {
                    rest = None;
                    return Some(field);
                }
                Some(':') => return Some(field),
                Some('\\') => field.extend(chars.next()),
                Some(char) => field.push(char),
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_that_matches_has_the_password() {
        let text = "# db:5432:app:me:commented\ndb:5433:app:me:other port\ndb:*:app:me:a\\:b\\\\c\n*:*:*:*:any\n";
        let find = |wanted| find(text, wanted);
        assert_eq!(find(["db", "5432", "app", "me"]).as_deref(), Some("a:b\\c"));
        assert_eq!(find(["db", "5433", "app", "me"]).as_deref(), Some("other port"));
        assert_eq!(find(["db2", "5432", "app", "me"]).as_deref(), Some("any"));
        assert_eq!(super::find("db:5432", ["db", "5432", "app", "me"]), None);
        assert_eq!(super::find("db:1:app:me", ["db", "1", "app", "me"]), None);
    }
    /// Also libpq goes on without: the home directory may be somebody else's, as in many containers.
    #[test]
    fn a_file_that_cannot_be_read_has_no_password() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pgpass");
        assert_eq!(read(&file), None);
        std::fs::write(&file, b"# \xe9t\xe9\ndb:*:*:*:pw\n").unwrap();
        #[cfg(unix)]
        std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        assert_eq!(read(&file.join("no directory")), None);
        assert_eq!(super::find(&read(&file).unwrap(), ["db", "5432", "app", "me"]).as_deref(), Some("pw"));
    }
}
