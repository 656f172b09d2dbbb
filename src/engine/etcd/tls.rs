//! TLS to a member. Its certificate must be for the name or the address in the URL, and somebody trusted must vouch for it.

use std::io;
use std::sync::Arc;

use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::config::{ClientCertificate, Tls};
use super::failure::Failure;
use crate::engine::server::socket::Socket;
use crate::engine::server::{steps, tls};

type Certificates = Vec<CertificateDer<'static>>;

pub(super) async fn begin(tls: &Tls, host: &str, stream: Socket) -> Result<TlsStream<Socket>, Failure> {
    let tls = tls.clone();
    let prepared = tls::prepare(host, move || configure(&tls)).await.map_err(Failure::not_sent)?;
    let handshake = prepared.map_err(Failure::unusable)?;
    steps::run(host.to_owned(), handshake(stream)).await.and_then(|done| done).map_err(Failure::not_sent)
}

/// Reads the files anew for each connection: certificates are replaced while a service runs.
fn configure(tls: &Tls) -> io::Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    let trusted = match &tls.roots {
        Some(path) => read(path)?,
        None => tls::roots_of_system()?.certs,
    };
    // As elsewhere, one bad certificate among those of a platform does not harm the others.
    if roots.add_parsable_certificates(trusted).0 == 0 {
        return Err(io::Error::new(io::ErrorKind::NotFound, "there is no certificate to trust"));
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(roots);
    let mut config = match &tls.identity {
        None => builder.with_no_client_auth(),
        Some(ClientCertificate { certificate, key }) => {
            let key_der = PrivateKeyDer::from_pem_file(key).map_err(|error| unreadable(key, error))?;
            builder.with_client_auth_cert(read(certificate)?, key_der).map_err(io::Error::other)?
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

fn read(path: &std::path::Path) -> io::Result<Certificates> {
    let certificates = CertificateDer::pem_file_iter(path).map_err(|error| unreadable(path, error))?;
    certificates.collect::<Result<_, _>>().map_err(|error| unreadable(path, error))
}

fn unreadable(path: &std::path::Path, error: impl std::fmt::Display) -> io::Error {
    io::Error::other(format!("cannot read the PEM file {path:?}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::runtime::Builder;

    /// As where the system starts no thread for a moment.
    #[test]
    fn files_that_nobody_can_read_now_may_be_read_later() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let [ending, here] = [(); 2].map(|()| Builder::new_current_thread().enable_all().build().unwrap());
        let handle = ending.handle().clone();
        ending.shutdown_background();
        let begun = here.block_on(async {
            let stream = Socket::connect(listener.local_addr().unwrap()).await.unwrap();
            let _without_threads = handle.enter();
            begin(&Tls { roots: None, identity: None }, "localhost", stream).await
        });
        assert!(begun.unwrap_err().is_passing());
    }
}
