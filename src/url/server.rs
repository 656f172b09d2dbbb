//! Parses the URL of a lock on a server.

use std::net::Ipv6Addr;

use percent_encoding::percent_decode_str;

use crate::engine;
use crate::words::kind::LockKind;
use crate::words::mode::Mode;
use crate::words::percent;
use crate::words::server_url::{self, Host, SHARED, Secret, ServerUrl};

/// What such URLs have elsewhere: libpq, chapter 34.1.2 of the manual of PostgreSQL 17, and clients of etcd.
const PARAMETERS_OF_OTHERS: &str = "host hostaddr port dbname user username password passfile options client_encoding \
    fallback_application_name keepalives keepalives_idle keepalives_interval keepalives_count tcp_user_timeout gssencmode \
    krbsrvname load_balance_hosts service sslcert sslkey sslpassword sslcrl sslcrldir sslnegotiation \
    ssl_min_protocol_version ssl_max_protocol_version timeout lease endpoints prefix";

/// Parses what is behind `scheme:`. `None` if the scheme is not that of a server.
///
/// A reason repeats nothing of the text: where there is a mistake, anything may be a part of the password.
pub(super) fn parse(scheme: &str, rest: &str) -> Option<Result<(ServerUrl, Mode), String>> {
    let (_, kind) = server_url::scheme(scheme)?;
    Some(parse_known(kind, rest))
}

fn parse_known(kind: LockKind, rest: &str) -> Result<(ServerUrl, Mode), String> {
    // As in a list of words, one of which may be a password.
    if rest.contains(char::is_whitespace) {
        return Err("it has a blank; write it as %20".into());
    }
    if rest.contains('#') {
        return Err("it has a fragment; write a # as %23".into());
    }
    let Some(rest) = rest.strip_prefix("//") else {
        return Err(format!("it names no host; write {kind}:// in front of the host"));
    };
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    // Behind the host, an @ means that a character in front of it ended the password too early.
    if path.contains('@') || query.contains('@') {
        return Err("it has an @ behind the host; write / ? and @ in a password as %2F, %3F and %40".into());
    }
    // A user and a password in the place of the host, or behind it. But a lock in etcd may have such a name.
    if path.contains(':') && (authority.is_empty() || kind == LockKind::Postgres) {
        return Err("it has a colon in its path; write it as %3A".into());
    }
    let (user, password, hosts) = parse_authority(authority)?;
    let (parameters, mode) = parse_query(query, engine::url_parameters(kind))?;
    let path = decode(path, "path")?;
    Ok((ServerUrl { kind, user, password, hosts, path, parameters }, mode))
}

type Authority = (Option<String>, Secret, Vec<Host>);

fn parse_authority(authority: &str) -> Result<Authority, String> {
    let (user, hosts) = match authority.split_once('@') {
        None => (None, authority),
        Some((_, hosts)) if hosts.contains('@') => {
            return Err("it has two @ in front of the host; write an @ in the user or the password as %40".into());
        }
        Some((user, hosts)) => (Some(user), hosts),
    };
    let (user, password) =
        match user.map(|user| user.split_once(':').map_or((user, None), |(user, pw)| (user, Some(pw)))) {
            None => (None, None),
            Some((user, password)) => (Some(decode(user, "user")?), password),
        };
    // Otherwise the password would be shown as a part of the name. The colon may be encoded, even twice.
    if user.as_ref().is_some_and(|user| user.contains([':', '%'])) {
        return Err(
            "its user contains a colon or a %; write the colon in front of the password as : and not as %3A".into()
        );
    }
    let password = password.map(|password| decode(password, "password")).transpose()?;
    let hosts = match hosts {
        "" => Vec::new(),
        hosts => hosts.split(',').map(parse_host).collect::<Result<_, _>>()?,
    };
    Ok((user.filter(|user| !user.is_empty()), Secret::new(password), hosts))
}

fn is_of_name(char: char) -> bool {
    char.is_alphanumeric() || "-._".contains(char)
}

fn parse_host(host: &str) -> Result<Host, String> {
    let unclosed = "the [ of an IPv6 address is not closed";
    let (name, port) = match host.strip_prefix('[') {
        Some(address) => {
            let (address, port) = address.split_once(']').ok_or(unclosed)?;
            let port = if port.is_empty() { None } else { Some(port.strip_prefix(':').ok_or(unclosed)?) };
            // A zone is written %25eth0 (RFC 6874), and named %eth0 (RFC 4007).
            let (number, zone) = address.split_once('%').unwrap_or((address, ""));
            let zone = zone.strip_prefix("25").unwrap_or(zone);
            let is_zone = zone.chars().all(is_of_name);
            number
                .parse::<Ipv6Addr>()
                .ok()
                .filter(|_| is_zone)
                .ok_or("the text between [ and ] is not an IPv6 address")?;
            let percent = if zone.is_empty() { "" } else { "%" };
            (format!("{number}{percent}{zone}"), port)
        }
        None => {
            let (name, port) = host.split_once(':').map_or((host, None), |(name, port)| (name, Some(port)));
            let name = decode(name, "host")?;
            // A user and a password may be encoded with the host.
            let is_in_order = match name.strip_prefix('/') {
                Some(directory) => !directory.contains(':'),
                None => name.chars().all(is_of_name),
            };
            if !is_in_order {
                return Err(
                    "a host's name has other characters than letters, digits, - . and _; write : and @ unencoded, \
                            as in user:password@host"
                        .into(),
                );
            }
            (name, port)
        }
    };
    if name.is_empty() {
        return Err("a host's name is empty".into());
    }
    let port = port.map(|port| match port.parse() {
        Ok(0) | Err(_) => Err("a host's port is not a number from 1 to 65535"),
        Ok(port) => Ok(port),
    });
    Ok(Host { name, port: port.transpose()? })
}

fn parse_query(query: &str, known: &[&str]) -> Result<(Vec<(String, String)>, Mode), String> {
    let mut parameters: Vec<(String, String)> = Vec::new();
    let mut mode = Mode::Exclusive;
    for (at, parameter) in query.split('&').enumerate().filter(|_| !query.is_empty()) {
        if parameter == SHARED {
            mode = Mode::Shared;
            continue;
        }
        let (name, value) = match parameter.split_once('=') {
            Some((name, value)) if known.contains(&name) => (name, value),
            None if known.contains(&parameter) => return Err(format!("the parameter {parameter} has no value")),
            Some((SHARED, _)) => return Err(format!("the parameter {SHARED} has a value")),
            _ => return Err(unknown_parameter(parameter, at + 1, known)),
        };
        if parameters.iter().any(|(other, _)| other == name) {
            return Err(format!("it has the parameter {name} twice"));
        }
        parameters.push((name.to_owned(), decode(value, name)?));
    }
    Ok((parameters, mode))
}

/// Names the parameter only if it is one of another program or engine. Anything else may be a part of a password.
fn unknown_parameter(parameter: &str, number: usize, known: &[&str]) -> String {
    let name = parameter.split('=').next().unwrap_or_default();
    let ours = server_url::SCHEMES.into_iter().flat_map(|(_, kind)| engine::url_parameters(kind)).copied();
    let subject = match ours.chain(PARAMETERS_OF_OTHERS.split_whitespace()).find(|other| *other == name) {
        Some(name) => format!("the parameter {name}"),
        None => format!("its parameter number {number}"),
    };
    let hint = match name {
        "user" | "password" => "; write user:password@ in front of the host",
        "host" | "hostaddr" | "port" => "; write host:port behind the //",
        "dbname" => "; write /dbname behind the host",
        _ => "",
    };
    format!("{subject} is none of {} and {SHARED}{hint}", known.join(", "))
}

fn decode(text: &str, what: &str) -> Result<String, String> {
    percent::check(text)?;
    let decoded = percent_decode_str(text).decode_utf8().map_err(|_| format!("its {what} is not UTF-8"))?;
    if decoded.contains('\0') {
        return Err(format!("its {what} contains a NUL byte"));
    }
    Ok(decoded.into_owned())
}

#[cfg(test)]
mod tests {
    use crate::LockError;
    use crate::url::LockUrl;
    use crate::words::mode::Mode;

    fn reason(url: &str) -> String {
        match url.parse::<LockUrl>() {
            Err(LockError::InvalidUrl { reason, url: named }) => {
                assert!(["postgres:***", "etcd:***"].contains(&&*named), "{named}");
                assert!(!reason.contains("S3cretPw"), "{reason}");
                reason
            }
            other => panic!("{url}: {other:?}"),
        }
    }

    #[test]
    fn the_parts_of_a_url() {
        let url: LockUrl =
            "postgresql://a%40b:S3cret%2FPw@db,[::1]:5433/my%20app?lock=n%26m&ttl=3s&shared".parse().unwrap();
        assert_eq!(url.mode(), Mode::Shared);
        let server = url.server().unwrap();
        assert_eq!(server.user.as_deref(), Some("a@b"));
        assert_eq!(server.password.reveal(), Some("S3cret/Pw"));
        assert_eq!(server.hosts[0].port, None);
        assert_eq!((&*server.hosts[1].name, server.hosts[1].port), ("::1", Some(5433)));
        assert_eq!(server.path, "my app");
        assert_eq!(server.parameter("lock"), Some("n&m"));
        assert_eq!(url.to_string(), "postgres://a%40b@db,[::1]:5433/my%20app?lock=n%26m&ttl=3s&shared");
        assert!(!format!("{url:?}").contains("S3cret"));
    }

    #[test]
    fn a_zone_is_decoded() {
        for text in ["etcd://[fe80::1%25eth0]:2379/x", "etcd://[fe80::1%eth0]:2379/x"] {
            let url: LockUrl = text.parse().unwrap();
            assert_eq!(url.server().unwrap().hosts[0].name, "fe80::1%eth0");
            assert_eq!(url.to_string(), "etcd://[fe80::1%25eth0]:2379/x");
        }
    }

    #[test]
    fn the_printed_url_is_the_same_lock() {
        for url in [
            "postgres://app:S3cretPw@db/app?lock=x",
            "postgres:///app?key=-1&shared",
            "postgres://%2Frun%2Fpostgresql/app?lock=x",
            "postgres://%2Frun%2Fpg%4015/app?lock=x",
            "etcd://[fe80::1%25eth0]:2379/x",
            "etcd://root:S3cretPw@h1:2379,h2:2379/jobs/nightly?shared",
            "ETCD://h1/jobs:nightly",
        ] {
            let parsed: LockUrl = url.parse().unwrap();
            let printed = parsed.to_string();
            assert!(!printed.contains("S3cretPw"), "{printed}");
            let again: LockUrl = printed.parse().unwrap();
            assert_eq!(parsed, again, "{url}");
            assert_eq!(printed, again.to_string());
        }
    }

    #[test]
    fn each_mistake_has_its_own_answer() {
        assert!(reason("postgres:db/app").contains("postgres://"));
        assert!(reason("postgres://db/app?lock=x#y").contains("fragment"));
        assert!(reason("postgres://app:12/S3cretPw@db/app").contains("%2F"));
        assert!(reason("postgres://app:12?S3cretPw@db/app").contains("%3F"));
        for url in ["postgres:///app:S3cretPw", "postgres://db/app:S3cretPw", "etcd:///app:S3cretPw"] {
            assert!(reason(url).contains("colon in its path"), "{url}");
        }
        assert!(reason("postgres://app:x@S3cretPw@db/app").contains("two @"));
        assert!(reason("postgres://app:S3cretPw/app").contains("port"));
        assert!(reason("postgres://db:0/app").contains("port"));
        assert!(reason("postgres://db,/app").contains("empty"));
        assert!(reason("postgres://[::1/app").contains("not closed"));
        assert!(reason("postgres://[::1]5/app").contains("not closed"));
        assert!(reason("postgres://[app:S3cretPw]/app").contains("IPv6"));
        assert!(reason("postgres://app%3AS3cretPw@db/app").contains("user contains a colon"));
        assert!(reason("postgres://app%253AS3cretPw@db/app").contains("user contains a colon"));
        assert!(reason("postgres://app%3AS3cretPw%40db/app").contains("user:password@host"));
        assert!(reason("postgres://app%253AS3cretPw%2540db/app").contains("user:password@host"));
        assert!(reason("postgres://user=app%20password=S3cretPw/app").contains("host's name"));
        assert!(reason("postgres://[::1%25S3cretPw:x]/app").contains("IPv6"));
        assert!(reason("postgres://host=db password=S3cretPw").contains("blank"));
        assert!(reason("postgres://db/app?password=S3cretPw").starts_with("the parameter password is none of lock, "));
        assert!(reason("postgres://db/app?password=S3cretPw").contains("in front of the host"));
        assert!(reason("postgres://db/app?tls=on").starts_with("the parameter tls is none of lock, "));
        assert!(reason("postgres://db/app?S3cretPw=x").starts_with("its parameter number 1 is none of lock, "));
        assert!(reason("postgres://db/app?lock").contains("no value"));
        assert!(reason("postgres://db/app?lock=x&lock=y").contains("twice"));
        assert!(reason("postgres://db/app?lock=x&").contains("parameter number 2"));
        assert!(reason("postgres://db/app?shared=1").contains("has a value"));
        assert!(reason("etcd://db/app?ttl=3s&lock=x").starts_with("the parameter lock is none of ttl, "));
        assert!(reason("etcd://db/%ff").contains("UTF-8"));
        assert!(reason("etcd://db/%zz").contains("hexadecimal"));
        assert!(reason("etcd://db/%00").contains("NUL"));
    }
}
