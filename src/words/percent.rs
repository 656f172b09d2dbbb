//! Percent-encoding, as RFC 3986 has it.

use std::ffi::{OsStr, OsString};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, percent_encode};

/// The characters of a path that are percent-encoded. These are all characters except the unreserved characters of RFC
/// 3986, the separator, and a few that need no encoding in a path.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b'/')
    .remove(b':')
    .remove(b'+')
    .remove(b',')
    .remove(b'=')
    .remove(b'@');

/// The same for a path that looks like a user with a password.
const ESCAPED_LOGIN: &AsciiSet = &ESCAPED.add(b':').add(b'@');

/// Whether each % begins an encoded byte.
pub(crate) fn check(text: &str) -> Result<(), &'static str> {
    let is_hex =
        |at: usize| text.as_bytes().get(at + 1..at + 3).is_some_and(|hex| hex.iter().all(u8::is_ascii_hexdigit));
    match text.match_indices('%').all(|(at, _)| is_hex(at)) {
        true => Ok(()),
        false => Err("a % is not followed by two hexadecimal digits; write % itself as %25"),
    }
}

/// Whether the path has a colon and behind it an @, as the URL of a server with another scheme has. The colon behind a
/// drive of Windows does not count.
pub(crate) fn has_login(path: &[u8]) -> bool {
    let path = match path {
        [b'/', drive, b':', b'/', rest @ ..] if drive.is_ascii_alphabetic() => rest,
        [drive, b':', b'/', rest @ ..] if cfg!(windows) && drive.is_ascii_alphabetic() => rest,
        path => path,
    };
    path.iter().rposition(|&byte| byte == b'@').is_some_and(|at| path[..at].contains(&b':'))
}

/// The URL with this scheme and this path.
pub(crate) fn url(scheme: &str, path: &OsStr) -> String {
    let path = bytes(path);
    let authority = if path.starts_with(b"/") { "//" } else { "" };
    let escaped = if has_login(&path) { ESCAPED_LOGIN } else { ESCAPED };
    format!("{scheme}:{authority}{}", percent_encode(&path, escaped))
}

/// The path of a URL.
pub(crate) fn decode_path(path: &str) -> Result<OsString, String> {
    check(path)?;
    let bytes: Vec<u8> = percent_decode_str(path).collect();
    if bytes.contains(&0) {
        return Err("its path contains a NUL byte".into());
    }
    os_string(bytes)
}

#[cfg(unix)]
fn os_string(bytes: Vec<u8>) -> Result<OsString, String> {
    Ok(std::os::unix::ffi::OsStringExt::from_vec(bytes))
}

#[cfg(windows)]
fn os_string(bytes: Vec<u8>) -> Result<OsString, String> {
    let path = String::from_utf8(bytes).map_err(|_| "its path is not UTF-8")?;
    // The path /C:/dir means C:/dir (RFC 8089, appendix E.2).
    match path.as_bytes() {
        [b'/', drive, b':', ..] if drive.is_ascii_alphabetic() => Ok(path[1..].into()),
        _ => Ok(path.into()),
    }
}

#[cfg(unix)]
fn bytes(path: &OsStr) -> std::borrow::Cow<'_, [u8]> {
    std::os::unix::ffi::OsStrExt::as_bytes(path).into()
}

#[cfg(windows)]
fn bytes(path: &OsStr) -> std::borrow::Cow<'_, [u8]> {
    let path = path.to_string_lossy();
    // The prefix only turns off the path normalization of Windows. The path without the prefix leads to the same file.
    let path = match path.strip_prefix(r"\\?\UNC\") {
        Some(share) => format!(r"\\{share}"),
        None => path.strip_prefix(r"\\?\").unwrap_or(&path).to_owned(),
    };
    let path = path.replace('\\', "/");
    match path.as_bytes() {
        [drive, b':', b'/', ..] if drive.is_ascii_alphabetic() => format!("/{path}").into_bytes().into(),
        _ => path.into_bytes().into(),
    }
}
