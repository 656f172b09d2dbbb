//! TLS, by rustls.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio_rustls::client::TlsStream;

use super::tls::{Root, Tls, TlsMode};
use crate::engine::server;
use crate::engine::server::socket::Socket;

/// Begins TLS as `tls` asks, with the server that `host` names.
pub(super) async fn shake_hands(socket: Socket, tls: &Tls, host: &str) -> io::Result<TlsStream<Socket>> {
    let tls = tls.clone();
    server::tls::prepare(host, move || client_config(&tls)).await??(socket).await
}

fn client_config(tls: &Tls) -> io::Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Verifier { trust: trust(tls, &provider)?, provider: Arc::clone(&provider) };
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(io::Error::other)?;
    Ok(builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier)).with_no_client_auth())
}

/// Which certificates are accepted.
#[derive(Debug)]
enum Trust {
    /// Every certificate. The connection is encrypted, but nothing is verified.
    Anything,
    Signed(Arc<WebPkiServerVerifier>),
    SignedForHost(Arc<WebPkiServerVerifier>),
}

fn trust(tls: &Tls, provider: &Arc<CryptoProvider>) -> io::Result<Trust> {
    let file = match &tls.root {
        Some(Root::System) => None,
        Some(Root::File(path)) => Some(path),
        None => tls.default_root.as_ref(),
    };
    // As libpq, which verifies whenever there is a file. The authorities of a system vouch for any name that its owner
    // asks them to, so they prove something only if the name counts.
    let roots = match (file.filter(|file| file.exists()), tls.mode) {
        (Some(file), _) => from_file(file)?,
        (None, TlsMode::VerifyFull) if !matches!(tls.root, Some(Root::File(_))) => from_system()?,
        (None, TlsMode::VerifyCa | TlsMode::VerifyFull) => return Err(no_root(file)),
        (None, _) => return Ok(Trust::Anything),
    };
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider)).build();
    let verifier = verifier.map_err(io::Error::other)?;
    Ok(match tls.mode {
        TlsMode::VerifyFull => Trust::SignedForHost(verifier),
        _ => Trust::Signed(verifier),
    })
}

fn no_root(file: Option<&PathBuf>) -> io::Error {
    let advice =
        "name a file in sslrootcert, or use verify-full without one, which trusts the authorities of the system";
    let reason = match file {
        Some(file) => format!("root certificate file {file:?} does not exist; {advice}"),
        None => format!("no root certificate file is named, and there is no home directory; {advice}"),
    };
    io::Error::new(io::ErrorKind::NotFound, reason)
}

fn from_file(path: &Path) -> io::Result<RootCertStore> {
    let cannot = |error: String| io::Error::other(format!("cannot read the root certificates {path:?}: {error}"));
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).map_err(|error| cannot(error.to_string()))? {
        let certificate = certificate.map_err(|error| cannot(error.to_string()))?;
        roots.add(certificate).map_err(|error| cannot(error.to_string()))?;
    }
    match roots.is_empty() {
        true => Err(cannot("it contains none".into())),
        false => Ok(roots),
    }
}

fn from_system() -> io::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(server::tls::roots_of_system()?.certs);
    match roots.is_empty() {
        true => Err(io::Error::other("this system has no root certificates; name a file in sslrootcert")),
        false => Ok(roots),
    }
}

#[derive(Debug)]
struct Verifier {
    trust: Trust,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verify = |verifier: &WebPkiServerVerifier| {
            verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
        };
        match &self.trust {
            Trust::Anything => Ok(ServerCertVerified::assertion()),
            Trust::SignedForHost(verifier) => verify(verifier),
            Trust::Signed(verifier) => match verify(verifier) {
                // The name is looked at after everything else.
                Err(rustls::Error::InvalidCertificate(
                    CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
                )) => Ok(ServerCertVerified::assertion()),
                verified => verified,
            },
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
