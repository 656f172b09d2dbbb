//! The certificates of the authorities that this system trusts.

use std::io;

use rustls_native_certs::CertificateResult;

use crate::sys::environment;

/// rustls-native-certs takes them from these variables, if they are there.
const VARIABLES: [&str; 2] = ["SSL_CERT_FILE", "SSL_CERT_DIR"];

/// Those that can be read: one bad certificate does not harm the others. There may be none.
pub(crate) fn of_system() -> io::Result<CertificateResult> {
    match VARIABLES.into_iter().find(|name| environment::is_untrusted(name)) {
        Some(name) => Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!(
                "{name} is set, but a set-uid program takes no certificates from its caller; name a file in the URL"
            ),
        )),
        None => Ok(rustls_native_certs::load_native_certs()),
    }
}
