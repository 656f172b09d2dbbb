//! What the engines have in common of TLS.

use std::io;
use std::sync::Arc;

use rustls_native_certs::CertificateResult;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::{Connect, TlsConnector};

use super::socket::Socket;
use crate::sys::environment;
use crate::util::blocking;

/// Returns what begins TLS with the server that `host` names. `configure` may read files: the outer result fails if the
/// system starts no thread for that, and the inner one if TLS cannot begin. The certificate names no zone of an address: a
/// zone means something only on this machine.
pub(crate) async fn prepare(
    host: &str,
    configure: impl FnOnce() -> io::Result<ClientConfig> + Send + 'static,
) -> io::Result<io::Result<impl FnOnce(Socket) -> Connect<Socket> + Send>> {
    let config = blocking::run(configure).await?;
    let host = host.split_once('%').map_or(host, |(address, _)| address);
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other);
    Ok(config.and_then(|config| {
        let (connector, name) = (TlsConnector::from(Arc::new(config)), name?);
        Ok(move |socket| connector.connect(name, socket))
    }))
}

/// rustls-native-certs takes them from these variables, if they are there.
const VARIABLES: [&str; 2] = ["SSL_CERT_FILE", "SSL_CERT_DIR"];

/// The certificates of the authorities that this system trusts. There may be none. A certificate that cannot be read does
/// not harm the others.
pub(crate) fn roots_of_system() -> io::Result<CertificateResult> {
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
