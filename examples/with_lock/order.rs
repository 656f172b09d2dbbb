//! What the command line asks for.

use std::error::Error;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio_lockfile::{LockFile, LockKind};

use super::say;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

pub(crate) struct Order {
    pub(crate) lock: LockFile,
    pub(crate) limit: Duration,
    pub(crate) conflict: u8,
    /// Whether the command gets no descriptor of the lock.
    #[cfg_attr(not(unix), expect(dead_code, reason = "it gets none there"))]
    pub(crate) is_closed: bool,
    pub(crate) command: Vec<OsString>,
    /// The variable that the command does not get.
    pub(crate) own_variable: Option<OsString>,
}

/// Where the name of the lock is.
enum Source {
    Argument(OsString),
    File(PathBuf),
    Variable(OsString),
}

/// `None` if the user asks for help.
pub(crate) fn parse(mut arguments: impl Iterator<Item = OsString>) -> Result<Option<Order>> {
    let (mut is_shared, mut is_closed, mut limit, mut conflict) = (false, false, Duration::MAX, 1);
    let mut sources = Vec::new();
    let mut command: Vec<OsString> = Vec::new();
    while let Some(argument) = arguments.next() {
        let (option, mut inline) = argument.to_str().map(split).unwrap_or_default();
        let mut value =
            || inline.take().map(OsString::from).or_else(|| arguments.next()).ok_or(format!("{option} needs a value"));
        match option {
            "--" => break,
            "-h" | "--help" => return Ok(None),
            "-s" | "--shared" => is_shared = true,
            "-o" | "--close" => is_closed = true,
            "-n" | "--nonblock" => limit = Duration::ZERO,
            "-w" | "--timeout" => limit = read_value(option, &value()?, time, "a time, such as 5s or 500ms")?,
            "-E" | "--conflict-exit-code" => {
                conflict = read_value(option, &value()?, |text| text.parse().ok(), "a number from 0 to 255")?;
            }
            "--url-file" => sources.push(Source::File(value()?.into())),
            "--url-env" => sources.push(Source::Variable(value()?)),
            // Behind the name there may be a password.
            _ if option.starts_with('-') => return Err(format!("unknown option {option}").into()),
            _ if sources.is_empty() => sources.push(Source::Argument(argument.clone())),
            _ => {
                command.push(argument.clone());
                break;
            }
        }
        if inline.is_some() && option.starts_with('-') {
            return Err(format!("{option} has no value").into());
        }
    }
    command.extend(arguments);
    let source = match <[Source; 1]>::try_from(sources) {
        Ok([source]) => source,
        Err(sources) if sources.is_empty() => return Err("no lock is given".into()),
        Err(_) => return Err("more than one lock is given".into()),
    };
    if command.is_empty() {
        return Err("no command is given".into());
    }
    let is_argument = matches!(source, Source::Argument(_));
    let lock = open(&source.name()?, is_argument)?;
    let lock = if is_shared { lock.shared()? } else { lock };
    if lock.kind() == LockKind::Null {
        say("warning: a null lock excludes no other process");
    }
    let own_variable = match source {
        Source::Variable(name) => Some(name),
        _ => None,
    };
    Ok(Some(Order { lock, limit, conflict, is_closed, command, own_variable }))
}

/// An option, and its value if that is in the same argument: `--timeout=5s`, `-w5s`, `-w=5s`.
fn split(argument: &str) -> (&str, Option<&str>) {
    let takes_value = ["-w", "-E"].into_iter().find(|short| argument.len() > 2 && argument.starts_with(short));
    match takes_value {
        Some(short) => (short, Some(argument[2..].trim_start_matches('='))),
        None if argument.starts_with("--") => {
            argument.split_once('=').map_or((argument, None), |(option, value)| (option, Some(value)))
        }
        None => (argument, None),
    }
}

fn read_value<T>(option: &str, value: &OsStr, read: impl Fn(&str) -> Option<T>, what: &str) -> Result<T> {
    let read = value.to_str().and_then(read);
    read.ok_or_else(|| format!("{option} {}: it is {what}", Path::new(value).display()).into())
}

impl Source {
    fn name(&self) -> Result<OsString> {
        match self {
            Self::Argument(name) => {
                if name.to_str().is_some_and(has_password) {
                    say("warning: ps(1) shows all users the password on this command line; see --url-file");
                }
                Ok(name.clone())
            }
            Self::File(path) => {
                let name =
                    read(path).map_err(|error| format!("cannot read the URL of a lock from {path:?}: {error}"))?;
                Ok(name.trim().into())
            }
            // Not `env::var`, whose error shows the value.
            Self::Variable(name) => std::env::var_os(name).ok_or(format!("there is no variable {name:?}").into()),
        }
    }
}

fn read(path: &Path) -> Result<String> {
    // A FIFO may have no writer.
    if !path.metadata()?.is_file() {
        return Err("it is not a plain file; --url-env takes the URL from a variable".into());
    }
    let mut file = File::open(path)?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    if has_password(&text) && is_open_to_others(&file)? {
        return Err("it has a password, and other users may read it; chmod it to 600".into());
    }
    if text.trim().contains('\n') {
        return Err("it has more than one line".into());
    }
    Ok(text)
}

/// The rule of libpq for the file of a private key: only its owner has access and, if that is root, a group for reading.
#[cfg(unix)]
fn is_open_to_others(file: &File) -> std::io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let found = file.metadata()?;
    let forbidden = if found.uid() == 0 { 0o037 } else { 0o077 };
    Ok(found.mode() & forbidden != 0)
}

/// Windows has no such bits.
#[cfg(not(unix))]
fn is_open_to_others(_file: &File) -> std::io::Result<bool> {
    Ok(false)
}

/// Whether a URL has one. A path has no `//` behind a colon, and no user behind that.
fn has_password(url: &str) -> bool {
    let authority = url.split_once("://").and_then(|(_, rest)| rest.split(['/', '?']).next());
    authority.and_then(|authority| authority.rsplit_once('@')).is_some_and(|(user, _host)| user.contains(':'))
}

/// A path begins with a slash or a dot. On the command line, it may also be a plain word.
fn open(name: &OsStr, is_argument: bool) -> Result<LockFile> {
    let text = name.to_string_lossy();
    let is_word = is_argument && !text.contains([':', '=', '@', ' ']);
    if is_word || (text.starts_with(['/', '.']) && !text.starts_with("//")) {
        return Ok(LockFile::new(name)?);
    }
    // As a path it would be shown in errors, with the password that it may contain.
    let url = name.to_str().ok_or("the URL is not UTF-8; write such bytes as %FF")?;
    Ok(LockFile::open(url)?)
}

/// `5s`, `500ms`, `2m`, `1h`, or seconds without a unit.
fn time(text: &str) -> Option<Duration> {
    let unit = text.trim_start_matches(|char: char| char.is_ascii_digit() || char == '.');
    let seconds = match unit {
        "" | "s" => 1.0,
        "ms" => 0.001,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return None,
    };
    let number: f64 = text[..text.len() - unit.len()].parse().ok()?;
    Duration::try_from_secs_f64(number * seconds).ok()
}
