//! Whatever is wrong with the URL of a server, no text shows a part of its password.

use std::cell::Cell;
use std::io;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::TestRunner;
use tokio_lockfile::{LockFile, LockUrl};

/// This many characters of a password are a part of it. A shorter piece may be in any text.
const PIECE: usize = 6;

#[derive(Debug, Clone)]
struct Draft {
    scheme: &'static str,
    slashes: &'static str,
    user: &'static str,
    colon: &'static str,
    password: String,
    is_encoded: bool,
    at: &'static str,
    hosts: &'static str,
    path: &'static str,
    query: String,
}

impl Draft {
    fn password(&self) -> String {
        match self.is_encoded {
            true => utf8_percent_encode(&self.password, NON_ALPHANUMERIC).to_string(),
            false => self.password.clone(),
        }
    }

    fn url(&self) -> String {
        let Self { scheme, slashes, user, colon, at, hosts, path, query, .. } = self;
        format!("{scheme}{slashes}{user}{colon}{}{at}{hosts}{path}{query}", self.password())
    }
}

/// What people do to a URL.
#[derive(Debug, Clone)]
enum Mistake {
    Scheme(&'static str),
    Slashes(&'static str),
    Colon(&'static str),
    At(&'static str),
    Path(&'static str),
    NoUser,
    NoHost,
    /// The password is not encoded, and has this text somewhere.
    NotEncoded(&'static str, Index),
    /// The password is the value of this parameter.
    InQuery(&'static str),
    /// The text is another one, with the URL or its parts in it.
    Whole(&'static str),
    CutOff(Index),
}

fn mistake() -> impl Strategy<Value = Mistake> {
    use Mistake::*;
    let schemes = ["lockfile:", "shlockfile:", "FlockFile:", "nulllockfile:", "file:", "pgsql:", "mysql:", ""];
    let more_schemes = ["jdbc:postgresql:", "postgres+tls:", "postgres", "postgres:postgres:", "etcd:", "://", "sql-"];
    prop_oneof![
        select([schemes.as_slice(), &more_schemes].concat()).prop_map(Scheme),
        select(vec!["", "/", "///", "\\\\", ":", "%2F%2F"]).prop_map(Slashes),
        select(vec!["%3A", "%3a", "::", ":/", " :"]).prop_map(Colon),
        select(vec!["%40", "@@", "@x@", "/@", "?@", "@[", "@:"]).prop_map(At),
        select(vec!["", "?", "#app", "/app@other", "/100%", "/a/b:c", ":/app", ",/app"]).prop_map(Path),
        Just(NoUser),
        Just(NoHost),
        (
            select(vec![
                "", "/", "?", "#", "&", ":", "@", "%", "%zz", "=", ";", " ", "\n", "\"", "ü", "12/", "//", "?x="
            ]),
            any::<Index>()
        )
            .prop_map(|(text, at)| NotEncoded(text, at)),
        select(vec!["password", "pw", "x", "key2", "PGPASSWORD", "lock%20", "user=app&secret"]).prop_map(InQuery),
        select(vec![
            "\"{url}\"",
            "'{url}'",
            "<{url}>",
            " {url}",
            "{url}\n",
            "\u{feff}{url}",
            "DATABASE_URL={url}",
            "export DATABASE_URL='{url}'",
            "url: {url}",
            "{url},{url}",
            "{url} {url}",
            "psql -d {url}",
            "host=db port=5432 user={user} password={password} dbname=app",
            "postgres://host=db user={user} password='{password}'",
            "machine db login {user} password {password}",
            "db:5432:app:{user}:{password}",
            "{user}:{password}@{url}",
            "postgres://db:5432/app@{user}:{password}",
            "postgres://db/{user}:{password}",
            "{\"url\": \"{url}\"}",
            "jdbc:{url}?user={user}&password={password}",
        ])
        .prop_map(Whole),
        any::<Index>().prop_map(CutOff),
    ]
}

fn draft() -> impl Strategy<Value = Draft> {
    let password =
        prop_oneof!["[A-Za-z0-9+/]{12,24}=?", "[A-Za-z0-9]{10,20}", "[ -~]{12,24}", "[A-Z0-9:/?@#&%ßλ]{10,20}"];
    let scheme = select(vec!["postgres:", "postgresql:", "etcd:"]);
    let user = select(vec!["app", "authenticator", "back-up.d"]);
    let hosts = select(vec!["db", "db.example.org:5432", "10.0.0.1", "[::1]:2379", "h1,h2:5433"]);
    let query = select(vec!["", "?ttl=10s", "?ttl=10s&connect_timeout=3s&shared"]).prop_map(str::to_owned);
    (scheme, user, password, hosts, query).prop_map(|(scheme, user, password, hosts, query)| {
        let (slashes, colon, at, path) = ("//", ":", "@", "/app");
        Draft { scheme, slashes, user, colon, password, is_encoded: true, at, hosts, path, query }
    })
}

/// The text of the draft with these mistakes, and its password.
fn spoilt(mut draft: Draft, mistakes: &[Mistake]) -> (String, String) {
    let at_a_char = |text: &str, index: &Index| text.char_indices().nth(index.index(text.chars().count())).unwrap().0;
    for mistake in mistakes {
        match mistake {
            Mistake::Scheme(scheme) => draft.scheme = scheme,
            Mistake::Slashes(slashes) => draft.slashes = slashes,
            Mistake::Colon(colon) => draft.colon = colon,
            Mistake::At(at) => draft.at = at,
            Mistake::Path(path) => draft.path = path,
            Mistake::NoUser => draft.user = "",
            Mistake::NoHost => (draft.at, draft.hosts) = ("", ""),
            Mistake::NotEncoded(text, index) => {
                draft.is_encoded = false;
                draft.password.insert_str(at_a_char(&draft.password, index), text);
            }
            _ => {}
        }
    }
    let password = draft.password.clone();
    for mistake in mistakes {
        if let Mistake::InQuery(name) = mistake {
            let separator = if draft.query.is_empty() { '?' } else { '&' };
            draft.query = format!("{}{separator}{name}={}", draft.query, draft.password());
            (draft.user, draft.colon, draft.at, draft.password) = ("", "", "", String::new());
        }
    }
    let mut text = draft.url();
    for mistake in mistakes {
        match mistake {
            Mistake::Whole(form) => {
                let with_parts = form.replace("{user}", draft.user).replace("{password}", &draft.password());
                text = with_parts.replace("{url}", &text);
            }
            Mistake::CutOff(index) if !text.is_empty() => text.truncate(at_a_char(&text, index)),
            _ => {}
        }
    }
    (text, password)
}

/// All that can be shown of a text that was meant to be a URL.
fn all_texts(text: &str) -> String {
    let parsed = text.parse::<LockUrl>();
    let opened = LockFile::open(text);
    let mut shown = format!("{parsed:?} {opened:?}");
    match parsed {
        Ok(url) => shown += &format!(" {url}"),
        Err(error) => shown += &format!(" {error} {:?}", error.path()),
    }
    match opened.map_err(io::Error::from) {
        Ok(lock) => shown += &format!(" {} {:?}", lock.url(), lock.path()),
        Err(error) => shown += &format!(" {error} {error:?}"),
    }
    #[cfg(feature = "serde")]
    {
        let read: Result<LockUrl, _> = serde_json::from_value(text.into());
        shown += &format!(" {read:?} {}", read.as_ref().map_or_else(ToString::to_string, ToString::to_string));
    }
    shown
}

/// The piece of the password that the text shows.
fn piece_in(shown: &str, password: &str) -> Option<String> {
    let encoded = utf8_percent_encode(password, NON_ALPHANUMERIC).to_string();
    [password, &encoded].iter().find_map(|password| {
        let chars: Vec<char> = password.chars().collect();
        let mut pieces = chars.windows(PIECE).map(|piece| piece.iter().collect::<String>());
        pieces.find(|piece| shown.contains(piece))
    })
}

/// Whether the text is a valid URL of another lock: nothing tells that a part of its path or its host was meant as a part of
/// the password.
fn is_of_another_lock(text: &str, mistakes: &[Mistake], password: &str) -> bool {
    let Ok(url) = text.parse::<LockUrl>() else { return false };
    let printed = url.to_string();
    let has_no_host = |mistake: &Mistake| {
        matches!(mistake, Mistake::NoHost | Mistake::NotEncoded(..) | Mistake::CutOff(_) | Mistake::Slashes("///"))
    };
    match printed.split_once('@') {
        Some((user, _)) if piece_in(user, password).is_some() => false,
        _ if printed.contains("file:") => !text.contains('@'),
        _ => mistakes.iter().any(has_no_host),
    }
}

fn no_piece_is_shown(cases: u32) {
    let (valid, others) = (Cell::new(0), Cell::new(0));
    let config = ProptestConfig { cases, failure_persistence: None, max_shrink_iters: 4_000, ..Default::default() };
    let result = TestRunner::new(config).run(&(draft(), vec(mistake(), 0..=4)), |(draft, mistakes)| {
        let (text, password) = spoilt(draft, &mistakes);
        let shown = all_texts(&text);
        valid.set(valid.get() + u32::from(text.parse::<LockUrl>().is_ok()));
        match piece_in(&shown, &password) {
            Some(_) if is_of_another_lock(&text, &mistakes, &password) => others.set(others.get() + 1),
            piece => prop_assert_eq!(piece, None, "{:?} is shown as {}", text, shown),
        }
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
    println!("{cases} texts, {} valid, {} of them URLs of another lock", valid.get(), others.get());
    assert!(valid.get() > cases / 10, "{} of {cases} were valid", valid.get());
    assert!(others.get() < cases / 50, "{} of {cases} were URLs of another lock", others.get());
}

#[test]
fn no_text_shows_a_part_of_a_password() {
    no_piece_is_shown(4_000);
}

#[test]
#[ignore = "takes a minute"]
fn no_text_of_very_many_shows_a_part_of_a_password() {
    no_piece_is_shown(200_000);
}
