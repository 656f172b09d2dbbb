//! A man in the middle. He takes the place of a server, with the certificate that he has, and asks for the password.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// Length and code of an SSLRequest.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// AuthenticationCleartextPassword.
pub(crate) const CLEARTEXT: &[u8] = b"R\0\0\0\x08\0\0\0\x03";

/// AuthenticationMD5Password with a salt.
pub(crate) const MD5: &[u8] = b"R\0\0\0\x0c\0\0\0\x05salt";

/// AuthenticationOk: no password is asked for.
pub(crate) const TRUST: &[u8] = b"R\0\0\0\x08\0\0\0\0";

const REFUSAL: &[u8] = b"E\0\0\0\x1fSFATAL\0C28P01\0Mno, thanks\0\0";

pub(crate) struct Middle {
    pub(crate) port: u16,
    stolen: Arc<Mutex<Vec<String>>>,
}

impl Middle {
    /// Without a certificate he says that he has no TLS. `request` is what he says to a client that has begun a session.
    pub(crate) fn start(certificate: Option<Arc<ServerConfig>>, request: &'static [u8]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (port, stolen) = (listener.local_addr().unwrap().port(), Arc::<Mutex<Vec<String>>>::default());
        let this = Self { port, stolen: Arc::clone(&stolen) };
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (certificate, stolen) = (certificate.clone(), Arc::clone(&stolen));
                // A client that goes away is no failure.
                std::thread::spawn(move || serve(client.unwrap(), certificate, request, &stolen));
            }
        });
        this
    }

    /// What clients have answered to the request until now.
    pub(crate) fn stolen(&self) -> Vec<String> {
        std::mem::take(&mut self.stolen.lock().unwrap())
    }
}

/// The certificate `NAME.crt` with the key `NAME.key`.
pub(crate) fn certificate(dir: &Path, name: &str) -> Arc<ServerConfig> {
    let certificate = CertificateDer::from_pem_file(dir.join(format!("{name}.crt"))).unwrap();
    let key = PrivateKeyDer::from_pem_file(dir.join(format!("{name}.key"))).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    Arc::new(builder.with_no_client_auth().with_single_cert(vec![certificate], key).unwrap())
}

fn serve(
    mut client: TcpStream,
    certificate: Option<Arc<ServerConfig>>,
    request: &[u8],
    stolen: &Mutex<Vec<String>>,
) -> io::Result<()> {
    let mut head = [0; 8];
    client.read_exact(&mut head)?;
    if head != SSL_REQUEST {
        return ask(client, head, request, stolen);
    }
    let Some(certificate) = certificate else {
        client.write_all(b"N")?;
        client.read_exact(&mut head)?;
        return ask(client, head, request, stolen);
    };
    client.write_all(b"S")?;
    let mut client = StreamOwned::new(ServerConnection::new(certificate).map_err(io::Error::other)?, client);
    client.read_exact(&mut head)?;
    ask(client, head, request, stolen)
}

/// `head`: how the startup message begins.
fn ask(mut client: impl Read + Write, head: [u8; 8], request: &[u8], stolen: &Mutex<Vec<String>>) -> io::Result<()> {
    read(&mut client, &head[..4], 8)?;
    client.write_all(request)?;
    client.flush()?;
    let mut kind_and_length = [0; 5];
    client.read_exact(&mut kind_and_length)?;
    let answer = read(&mut client, &kind_and_length[1..], 4)?;
    stolen.lock().unwrap().push(String::from_utf8_lossy(&answer).trim_end_matches('\0').to_owned());
    client.write_all(REFUSAL)?;
    client.flush()
}

/// The rest of a message of which `had` bytes have been read.
fn read(client: &mut impl Read, length: &[u8], had: u64) -> io::Result<Vec<u8>> {
    let length = u32::from_be_bytes(length.try_into().unwrap());
    let mut rest = Vec::new();
    client.take(u64::from(length) - had).read_to_end(&mut rest)?;
    Ok(rest)
}

/// For programs that read an authority's certificate from a home directory.
pub(crate) fn home_with_root(root: &Path) -> tempfile::TempDir {
    let home = tempfile::tempdir().unwrap();
    fs::create_dir(home.path().join(".postgresql")).unwrap();
    fs::copy(root, home.path().join(".postgresql/root.crt")).unwrap();
    home
}
