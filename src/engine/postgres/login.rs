//! How the login must be done, as libpq means `channel_binding` and `require_auth` (its manual: "Parameter Key Words").

use std::io;

/// Whether the login is bound to the certificate of the server: one that a man in the middle passes on is then refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum ChannelBinding {
    Disable,
    Prefer,
    Require,
}

impl ChannelBinding {
    /// `None` if the value is none of libpq's.
    pub(super) fn parse(value: &str) -> Option<Self> {
        match value {
            "disable" => Some(Self::Disable),
            "prefer" => Some(Self::Prefer),
            "require" => Some(Self::Require),
            _ => None,
        }
    }
}

/// The methods that the server may ask for. There is one or more.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Methods {
    text: String,
    named: Vec<&'static Method>,
    /// Whether the named ones are those that it may *not* ask for.
    are_refused: bool,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Method {
    name: &'static str,
    /// The number in the server's message ("Message Formats" in the manual of PostgreSQL).
    number: u32,
    /// What it is to ask for this method, in libpq's words.
    request: &'static str,
}

const METHODS: [Method; 6] = [
    Method { name: "none", number: 0, request: "server did not complete authentication" },
    Method { name: "password", number: 3, request: "server requested a cleartext password" },
    Method { name: "md5", number: 5, request: "server requested a hashed password" },
    Method { name: "gss", number: 7, request: "server requested GSSAPI authentication" },
    Method { name: "sspi", number: 9, request: "server requested SSPI authentication" },
    Method { name: "scram-sha-256", number: 10, request: "server requested SASL authentication" },
];

impl Methods {
    /// The error says what is wrong with the value.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let are_refused = text.starts_with('!');
        let mut named = Vec::new();
        for item in text.split(',') {
            let name = item.strip_prefix('!').unwrap_or(item);
            let Some(method) = METHODS.iter().find(|method| method.name == name) else {
                return Err(format!("{item:?} is none of {}", METHODS.each_ref().map(|method| method.name).join(", ")));
            };
            if item.starts_with('!') != are_refused {
                return Err("methods with and without ! cannot be mixed".into());
            }
            if named.contains(&method) {
                return Err(format!("{name} is named twice"));
            }
            named.push(method);
        }
        Ok(Self { text: text.to_owned(), named, are_refused })
    }

    /// Whether the server may ask for the method with this number. A login that is begun is also completed.
    pub(super) fn check(&self, number: Option<u32>) -> io::Result<()> {
        let method = METHODS.iter().find(|method| Some(method.number) == number);
        let request = match method {
            Some(method) if self.named.contains(&method) != self.are_refused => return Ok(()),
            Some(method) => method.request,
            None => "server requested an unknown authentication type",
        };
        let reason = format!("authentication method requirement {:?} failed: {request}", self.text);
        Err(io::Error::new(io::ErrorKind::PermissionDenied, reason))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_are_those_that_are_named_or_all_others() {
        let accepted = |text: &str| -> Vec<&str> {
            let methods = Methods::parse(text).unwrap();
            METHODS
                .iter()
                .filter(|method| methods.check(Some(method.number)).is_ok())
                .map(|method| method.name)
                .collect()
        };
        assert_eq!(accepted("scram-sha-256,md5"), ["md5", "scram-sha-256"]);
        assert_eq!(accepted("!password,!none,!md5"), ["gss", "sspi", "scram-sha-256"]);
        assert!(Methods::parse("!md5").unwrap().check(Some(2)).is_err());
        let error = Methods::parse("scram-sha-256").unwrap().check(Some(3)).unwrap_err().to_string();
        assert_eq!(
            error,
            "authentication method requirement \"scram-sha-256\" failed: server requested a cleartext password"
        );
    }

    #[test]
    fn each_mistake_has_its_own_answer() {
        let reason = |text| Methods::parse(text).unwrap_err();
        assert!(reason("scram").contains("\"scram\" is none of none, password"));
        assert!(reason("").contains("\"\""));
        assert!(reason("md5,!none").contains("mixed"));
        assert!(reason("!none,md5").contains("mixed"));
        assert!(reason("md5,md5").contains("twice"));
    }
}
