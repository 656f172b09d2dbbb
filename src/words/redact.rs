//! Hides passwords in the text of a URL, also of one that cannot be parsed.
//!
//! It is better to hide too much than too little: this text is only shown.

use percent_encoding::percent_decode_str;

const HIDDEN: &str = "***";

/// The text without what may be a password in it.
pub(crate) fn redact(text: &str) -> String {
    let text = hide_values(text);
    match secret(&text) {
        Some((from, to)) => format!("{}{HIDDEN}{}", &text[..from], &text[to..]),
        None => text,
    }
}

/// A part of a URL for a message beside the URL, of which `shown` is what may be shown.
pub(super) fn quote<'a>(part: &'a str, shown: &str) -> &'a str {
    if shown.contains(part) { part } else { HIDDEN }
}

/// Where a password stands between the scheme and the host.
fn secret(text: &str) -> Option<(usize, usize)> {
    let scheme_end = text.find(':')? + 1;
    let start = text.len() - text[scheme_end..].trim_start_matches('/').len();
    let at = |found: Option<usize>| found.map(|at| start + at);
    let body = &text[start..];
    let lower = body.to_ascii_lowercase();
    let first_at = at([body.find('@'), lower.find("%40")].into_iter().flatten().min());
    let last_at = at([body.rfind('@'), lower.rfind("%40")].into_iter().flatten().max());
    let (Some(first_at), Some(last_at)) = (first_at, last_at) else {
        // Without a host, the password stands where the port belongs.
        let colon = colons(body).map(|colon| start + colon).find(|&colon| !is_port(&text[colon..]))?;
        // The path of a lock file may have a colon. Anything else has forgotten the slashes.
        let is_path =
            text[..scheme_end].to_ascii_lowercase().ends_with("file:") && !text[scheme_end..].starts_with("//");
        return (!is_path).then_some((colon, text.len()));
    };
    if start == scheme_end {
        // The text has no scheme or no slashes. So the first colon may be the one in front of the password.
        return Some((scheme_end, last_at));
    }
    let is_secret = |&colon: &usize| colon <= first_at || !is_port(&text[colon..]);
    let from = colons(body).map(|colon| start + colon).take_while(|&colon| colon <= last_at).find(is_secret)?;
    Some((from, last_at))
}

/// The places behind each colon, also behind an encoded one.
fn colons(text: &str) -> impl Iterator<Item = usize> {
    text.char_indices().filter_map(|(at, char)| match char {
        ':' => Some(at + 1),
        '%' if text.get(at + 1..at + 3).is_some_and(|hex| hex.eq_ignore_ascii_case("3a")) => Some(at + 3),
        _ => None,
    })
}

fn is_port(text: &str) -> bool {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    digits <= 5 && matches!(text.as_bytes().get(digits), None | Some(b'/' | b'?' | b',' | b'#'))
}

/// Hides the value of each parameter whose name says that it is a secret, in a URL's query or in a list of `name=value`.
fn hide_values(text: &str) -> String {
    let is_separator = |char: char| matches!(char, '?' | '&' | ';' | '#') || char.is_whitespace();
    let mut shown = String::with_capacity(text.len());
    // A password may contain a separator: then the rest of it looks like a parameter without a value.
    let mut goes_on = false;
    for part in text.split_inclusive(is_separator) {
        let parameter = part.trim_end_matches(is_separator);
        let separator = &part[parameter.len()..];
        match parameter.split_once('=') {
            Some((name, _)) if is_secret_name(name) => {
                shown.extend([name, "=", HIDDEN]);
                goes_on = true;
            }
            None if goes_on => shown.push_str(HIDDEN),
            _ => {
                shown.push_str(parameter);
                goes_on = false;
            }
        }
        shown.push_str(separator);
    }
    shown
}

fn is_secret_name(name: &str) -> bool {
    let name = percent_decode_str(name).decode_utf8_lossy().to_ascii_lowercase();
    ["pass", "pw", "secret", "token", "auth", "cred"].iter().any(|word| name.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_form_of_a_url_shows_its_password() {
        for url in [
            "postgres://app:S3cretPw@db/app?lock=x",
            "postgres://app:S3cretPw@db:5432/app",
            "postgres://app:12/S3cretPw@db/app",
            "postgres://app:S3cretPw?x@db/app",
            "postgres://app:12@S3cretPw/x@db/app",
            "postgres://app:1#S3cretPw@db/app",
            "postgres://a@b:S3cretPw@db/app",
            "postgres://app%3AS3cretPw@db/app",
            "postgres://app:S3cretPw%40db/app",
            "postgres://app:%53S3cretPw@db/app",
            "postgres://:S3cretPw@db/app",
            "postgres://app:S3cretPw",
            "postgres://app:S3cretPw/app?lock=x",
            "postgres:/app:S3cretPw@db/app",
            "postgres:app:S3cretPw@db/app",
            "postgres:app:S3cretPw/app",
            "postgres:/app:S3cretPw/app",
            "jdbc:postgresql://app:S3cretPw/app",
            "app:S3cretPw@db/app",
            "etcd://root:S3cretPw@h1:2379,h2:2379/x",
            "nothing://app:S3cretPw@db",
            "lockfile://app:S3cretPw@host/x",
            "lockfile://app:S3cretPw/x",
            "postgres://db/app?password=S3cretPw",
            "postgres://db/app?lock=x&PassWord=S3cretPw&ttl=3s",
            "postgres://db/app?pass%77ord=S3cretPw",
            "postgres://db/app?password=1&S3cretPw",
            "postgres://db/app?sslpassword=S3cretPw#x",
            "lockfile:/x?auth_token=S3cretPw",
            "host=db password=S3cretPw user=app",
            "host=db pw=S3cretPw user=app",
            "host=db password='1 S3cretPw'",
            "password=S3cretPw options=a:b",
        ] {
            let shown = redact(url);
            assert!(!shown.contains("S3cretPw"), "{url} is shown as {shown}");
            assert!(shown.contains(HIDDEN), "{url} is shown as {shown}");
        }
    }

    #[test]
    fn what_has_no_password_is_shown_as_it_is() {
        for url in [
            "lockfile:/run/app.lock",
            "lockfile:///run/user@host.lock",
            "file:/run/app.lock",
            "flockfile:/run/a:b.lock?y",
            "postgres://app@db:5432/app?lock=x",
            "postgres://db,db2:5433/app?lock=x&ttl=10s&shared",
            "/run/app.lock",
            "",
            "ü:ü",
        ] {
            assert_eq!(redact(url), url);
        }
        assert_eq!(redact("postgres://app:pw@db/app?lock=x"), "postgres://app:***@db/app?lock=x");
    }
}
