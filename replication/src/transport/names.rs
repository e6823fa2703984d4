//! Names in certificates.

use rustls_pki_types::{CertificateDer, ServerName};
use webpki::EndEntityCert;

/// Why a certificate does not have the expected name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The configured name can be in no certificate.
    #[error("\"{name}\" is neither a DNS name nor an IP address: set replication.peer_name")]
    NotAName {
        /// The configured name.
        name: String,
    },
    /// It is for other names.
    #[error(
        "its certificate is for {}, expected {expected}: set replication.peer_name or issue a certificate for it",
        list(presented)
    )]
    Mismatch {
        /// The name it should be for.
        expected: String,
        /// The names it is for.
        presented: Vec<String>,
    },
    /// It presented none, or one that cannot be read.
    #[error("it presented no readable certificate")]
    NoCertificate,
}

fn list(names: &[String]) -> String {
    if names.is_empty() {
        "no name".to_owned()
    } else {
        names.join(", ")
    }
}

/// The certificates that the peer of a connection presented.
pub(super) fn peer_chain(connection: &quinn::Connection) -> Vec<CertificateDer<'static>> {
    let identity = connection.peer_identity();
    let chain = identity.and_then(|any| any.downcast::<Vec<CertificateDer<'static>>>().ok());
    chain.map(|chain| *chain).unwrap_or_default()
}

/// The first DNS name of a chain's end-entity certificate.
pub(super) fn first_name(chain: &[CertificateDer<'_>]) -> Option<String> {
    let certificate = EndEntityCert::try_from(chain.first()?).ok()?;
    certificate.valid_dns_names().next().map(str::to_owned)
}

/// Checks that a verified chain's end-entity certificate is for `expected`.
pub(super) fn check_name(
    chain: &[CertificateDer<'_>],
    expected: &ServerName<'_>,
) -> Result<(), NameError> {
    let first = chain.first().ok_or(NameError::NoCertificate)?;
    let certificate = EndEntityCert::try_from(first).map_err(|_| NameError::NoCertificate)?;
    match certificate.verify_is_valid_for_subject_name(expected) {
        Ok(()) => Ok(()),
        Err(webpki::Error::CertNotValidForName(context)) => Err(NameError::Mismatch {
            expected: expected.to_str().into_owned(),
            presented: context.presented,
        }),
        Err(_) => Err(NameError::NoCertificate),
    }
}
