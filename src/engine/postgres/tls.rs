//! How much of TLS a lock asks for, as libpq means it (its manual: "SSL Support", table "SSL Mode Descriptions").

use std::path::PathBuf;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Tls {
    pub(super) mode: TlsMode,
    pub(super) root: Option<Root>,
    /// The file that counts if the URL names none and the file exists.
    pub(super) default_root: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum TlsMode {
    Disable,
    /// Without TLS if the server has none or it fails.
    Prefer,
    /// Encrypted. The certificate is verified if there is a root certificate to verify it with.
    Require,
    VerifyCa,
    /// The certificate is also that of the host.
    VerifyFull,
}

/// The certificates that may sign that of the server.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Root {
    System,
    File(PathBuf),
}

impl Root {
    pub(super) fn parse(text: String) -> Self {
        match &*text {
            "system" => Self::System,
            _ => Self::File(text.into()),
        }
    }
}

impl TlsMode {
    const NAMES: [(&str, Self); 5] = [
        ("disable", Self::Disable),
        ("prefer", Self::Prefer),
        ("require", Self::Require),
        ("verify-ca", Self::VerifyCa),
        ("verify-full", Self::VerifyFull),
    ];

    /// `name`: what a message calls the mode.
    pub(super) fn parse(name: &str, mode: &str) -> Result<Self, String> {
        match Self::NAMES.iter().find(|(known, _)| *known == mode) {
            Some(&(_, mode)) => Ok(mode),
            None if mode == "allow" => Err(format!(
                "{name} is allow, which avoids TLS wherever it can; write prefer, which connects to the same servers"
            )),
            None => {
                let names = Self::NAMES.map(|(name, _)| name).join(", ");
                Err(format!("{name} {mode:?} is none of {names}"))
            }
        }
    }
}

impl Tls {
    pub(super) fn new(
        mode: Option<TlsMode>,
        root: Option<Root>,
        default_root: Option<PathBuf>,
    ) -> Result<Self, String> {
        let is_system = root == Some(Root::System);
        let mode = mode.unwrap_or(if is_system { TlsMode::VerifyFull } else { TlsMode::Prefer });
        if is_system && mode < TlsMode::VerifyFull {
            return Err("its sslrootcert is system, so its sslmode has to be verify-full".into());
        }
        Ok(Self { mode, root, default_root })
    }

    pub(super) fn may_be_used(&self) -> bool {
        self.mode > TlsMode::Disable
    }

    /// Whether a connection without TLS is less than the lock asks for.
    pub(super) fn is_demanded(&self) -> bool {
        self.mode >= TlsMode::Require
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mode_is_never_less_than_asked() {
        let root = |text: &str| Some(Root::parse(text.into()));
        assert_eq!(Tls::new(None, None, None).unwrap().mode, TlsMode::Prefer);
        assert_eq!(Tls::new(None, root("system"), None).unwrap().mode, TlsMode::VerifyFull);
        assert!(Tls::new(Some(TlsMode::VerifyCa), root("system"), None).is_err());
        assert!(Tls::new(Some(TlsMode::VerifyCa), root("/x"), None).is_ok());
        let demanded = TlsMode::NAMES.map(|(_, mode)| Tls::new(Some(mode), None, None).unwrap().is_demanded());
        assert_eq!(demanded, [false, false, true, true, true]);
    }
}
