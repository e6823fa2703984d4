//! This host's certificate and the CA it trusts.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::crypto::CryptoProvider;
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use webpki::{EndEntityCert, KeyUsage};

use super::names::first_name;
use crate::protocol::{SessionToken, TOKEN_BYTES};

/// No PEM file of this purpose is larger.
const PEM_BYTES_MAX: u64 = 1 << 20;

const ALPN: &[u8] = b"samsara/1";
const ALPN_LIFELINE: &[u8] = b"samsara-lifeline/1";

/// The files of `tls.ca`, `tls.cert` and `tls.key`, all PEM.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// Certificates of the operator's CA.
    pub ca: PathBuf,
    /// This host's certificate, then intermediate ones if any.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// What is wrong with the files.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Cannot be read.
    #[error("{key} {}: cannot be read", path.display())]
    Read {
        /// The configuration key.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Not what it should be.
    #[error("{key} {}: {problem}", path.display())]
    Content {
        /// The configuration key.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The key belongs to another certificate.
    #[error("tls.key {}: is not the key of the certificate in tls.cert {}", key.display(), cert.display())]
    KeyMismatch {
        /// The key file.
        key: PathBuf,
        /// The certificate file.
        cert: PathBuf,
    },
    /// The certificate is not signed by the CA.
    #[error("tls.cert {}: is not signed by a CA in tls.ca {}", cert.display(), ca.display())]
    OtherCa {
        /// The certificate file.
        cert: PathBuf,
        /// The CA file.
        ca: PathBuf,
    },
    /// The TLS library refuses the combination.
    #[error("the certificates cannot be used for TLS 1.3")]
    Rustls(#[source] rustls::Error),
}

/// Configurations for both directions, made and checked once.
#[derive(Clone)]
pub struct TlsIdentity {
    provider: Arc<CryptoProvider>,
    name: Option<String>,
    pub(super) quic_server: Arc<QuicServerConfig>,
    pub(super) quic_client: Arc<QuicClientConfig>,
    pub(super) lifeline_server: Arc<ServerConfig>,
    pub(super) lifeline_client: Arc<ClientConfig>,
}

impl std::fmt::Debug for TlsIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TlsIdentity")
    }
}

impl TlsIdentity {
    /// Reads the files and checks that this host could convince another that trusts the same CA.
    pub fn load(files: &TlsFiles) -> Result<Self, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let roots = Arc::new(read_roots(&files.ca)?);
        let chain = read_chain("tls.cert", &files.cert)?;
        let key = read_key(&files.key)?;
        let name = first_name(&chain);
        check_own_chain(files, &chain, &roots, &provider)?;

        let server = server_config(files, &provider, &roots, &chain, &key)?;
        let client = client_config(files, &provider, &roots, chain, key)?;
        let quic_server = with_server_alpn(&server, ALPN);
        let quic_client = with_client_alpn(&client, ALPN);
        // TLS 1.3 with ring always has the cipher suite that QUIC starts with.
        let no_suite = |_| TlsError::Rustls(rustls::Error::General("no QUIC cipher suite".into()));
        Ok(Self {
            provider,
            name,
            quic_server: Arc::new(QuicServerConfig::try_from(quic_server).map_err(no_suite)?),
            quic_client: Arc::new(QuicClientConfig::try_from(quic_client).map_err(no_suite)?),
            lifeline_server: Arc::new(with_server_alpn(&server, ALPN_LIFELINE)),
            lifeline_client: Arc::new(with_client_alpn(&client, ALPN_LIFELINE)),
        })
    }

    /// The first DNS name in this host's certificate.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// A random token for a session.
    pub(super) fn new_token(&self) -> io::Result<SessionToken> {
        let mut token = [0; TOKEN_BYTES];
        let filled = self.provider.secure_random.fill(&mut token);
        filled.map_err(|_| io::Error::other("no random numbers"))?;
        Ok(SessionToken(token))
    }
}

fn server_config(
    files: &TlsFiles,
    provider: &Arc<CryptoProvider>,
    roots: &Arc<RootCertStore>,
    chain: &[CertificateDer<'static>],
    key: &PrivateKeyDer<'static>,
) -> Result<ServerConfig, TlsError> {
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
        .build()
        .map_err(|error| content("tls.ca", &files.ca, &error))?;
    let mut config = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::Rustls)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain.to_vec(), key.clone_key())
        .map_err(|error| key_error(files, error))?;
    // Certificates are verified on every connection: nothing is resumed.
    config.send_tls13_tickets = 0;
    Ok(config)
}

fn client_config(
    files: &TlsFiles,
    provider: &Arc<CryptoProvider>,
    roots: &Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ClientConfig, TlsError> {
    let mut config = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::Rustls)?
        .with_root_certificates(roots.clone())
        .with_client_auth_cert(chain, key)
        .map_err(|error| key_error(files, error))?;
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

fn with_server_alpn(config: &ServerConfig, alpn: &[u8]) -> ServerConfig {
    let mut config = config.clone();
    config.alpn_protocols = vec![alpn.to_vec()];
    config
}

fn with_client_alpn(config: &ClientConfig, alpn: &[u8]) -> ClientConfig {
    let mut config = config.clone();
    config.alpn_protocols = vec![alpn.to_vec()];
    config
}

fn content(key: &'static str, path: &Path, problem: &impl ToString) -> TlsError {
    TlsError::Content {
        key,
        path: path.to_owned(),
        problem: problem.to_string(),
    }
}

fn key_error(files: &TlsFiles, error: rustls::Error) -> TlsError {
    match error {
        rustls::Error::InconsistentKeys(_) => TlsError::KeyMismatch {
            key: files.key.clone(),
            cert: files.cert.clone(),
        },
        rustls::Error::General(problem) => content("tls.key", &files.key, &problem),
        other => TlsError::Rustls(other),
    }
}

fn read(key: &'static str, path: &Path) -> Result<Vec<u8>, TlsError> {
    let mut bytes = Vec::new();
    let file = File::open(path);
    file.and_then(|file| file.take(PEM_BYTES_MAX + 1).read_to_end(&mut bytes))
        .map_err(|source| TlsError::Read {
            key,
            path: path.to_owned(),
            source,
        })?;
    if bytes.len() as u64 > PEM_BYTES_MAX {
        return Err(content(
            key,
            path,
            &"is larger than 1 MiB, so it is no PEM file of this kind",
        ));
    }
    Ok(bytes)
}

fn read_chain(key: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bytes = read(key, path)?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let chain = chain.map_err(|error| content(key, path, &format!("is not valid PEM: {error}")))?;
    if chain.is_empty() {
        return Err(content(key, path, &"has no certificate in PEM form"));
    }
    Ok(chain)
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let bytes = read("tls.key", path)?;
    PrivateKeyDer::from_pem_slice(&bytes).map_err(|error| match error {
        rustls_pki_types::pem::Error::NoItemsFound => {
            content("tls.key", path, &"has no private key in PEM form")
        }
        other => content("tls.key", path, &format!("is not valid PEM: {other}")),
    })
}

fn read_roots(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in read_chain("tls.ca", path)? {
        roots
            .add(certificate)
            .map_err(|error| content("tls.ca", path, &format!("is no CA certificate: {error}")))?;
    }
    Ok(roots)
}

/// The check the peer will make, made here, where the file can be named.
fn check_own_chain(
    files: &TlsFiles,
    chain: &[CertificateDer<'static>],
    roots: &RootCertStore,
    provider: &CryptoProvider,
) -> Result<(), TlsError> {
    let bad = |problem: &str| content("tls.cert", &files.cert, &problem);
    let Some((first, intermediates)) = chain.split_first() else {
        return Err(bad("has no certificate in PEM form"));
    };
    let certificate = EndEntityCert::try_from(first)
        .map_err(|error| bad(&format!("has a certificate that cannot be read: {error}")))?;
    for usage in [KeyUsage::server_auth(), KeyUsage::client_auth()] {
        let verified = certificate.verify_for_usage(
            provider.signature_verification_algorithms.all,
            &roots.roots,
            intermediates,
            UnixTime::now(),
            usage,
            None,
            None,
        );
        verified.map_err(|error| match error {
            webpki::Error::CertExpired { .. } => bad("has expired: issue a new certificate"),
            webpki::Error::CertNotValidYet { .. } => {
                bad("is not valid yet: check this host's clock")
            }
            webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey => {
                TlsError::OtherCa {
                    cert: files.cert.clone(),
                    ca: files.ca.clone(),
                }
            }
            webpki::Error::RequiredEkuNotFoundContext(_) => {
                bad("must be for both server and client authentication: hosts change roles")
            }
            webpki::Error::CaUsedAsEndEntity => bad("is a CA's certificate, not a host's"),
            other => bad(&format!("does not verify against tls.ca: {other}")),
        })?;
    }
    Ok(())
}
