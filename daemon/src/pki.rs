//! The operator's own certificate authority: `samsaractl pki init` and `pki issue`.
//!
//! A CA is a directory with `ca.pem` and `ca.key`; a host's certificate and key are `NAME.pem` and `NAME.key` beside them
//! or elsewhere. Keys are P-256, readable by their owner only from the moment they exist. Nothing is ever overwritten.
//! A host is server and client in turn, so its certificate allows both.

mod files;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType, string::Ia5String,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, DnsName, UnixTime};

use files::{Access, NewFile};

const CA_CERTIFICATE: &str = "ca.pem";
const CA_KEY: &str = "ca.key";
const DAY: Duration = Duration::from_hours(24);
/// Certificates are valid from a day ago: clocks of two hosts differ.
const CLOCK_TOLERANCE: Duration = DAY;
/// A hundred years; also keeps dates within what a certificate can say.
const DAYS_MAX: u32 = 36_500;
const ADDRESSES_MAX: usize = 64;

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// Something is there already.
    #[error("{} exists: it is not overwritten; choose another directory, or move it away", .path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// A file or directory cannot be written.
    #[error("cannot write {}", .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file of the CA cannot be read.
    #[error("cannot read {}: make a CA with samsaractl pki init first, or name its directory with --dir", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file of the CA is not what it should be.
    #[error("{} is not a {wanted} in PEM form", .path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What it should be.
        wanted: &'static str,
    },
    /// A name that no certificate can carry.
    #[error("{name:?} is not a host name: letters, digits, '-' and '.'; and not \"ca\"")]
    Name {
        /// The name.
        name: String,
    },
    /// A lifetime out of range.
    #[error("--days takes 1 to {DAYS_MAX}, not {days}")]
    Days {
        /// The lifetime.
        days: u32,
    },
    /// Too many addresses for one host.
    #[error("--address can be given {ADDRESSES_MAX} times, not {count}")]
    Addresses {
        /// How many.
        count: usize,
    },
    /// The certificate just made does not hold.
    #[error("a certificate of the CA in {} would not be accepted: ca.pem and ca.key do not belong together, or ca.pem has expired", .dir.display())]
    Unsound {
        /// The CA's directory.
        dir: PathBuf,
        /// Why.
        #[source]
        source: webpki::Error,
    },
    /// Making keys or certificates failed.
    #[error("cannot make a certificate")]
    Generate(#[from] rcgen::Error),
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// The CA's certificate.
    pub ca: PathBuf,
    /// The certificate: the CA's own, or the host's.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// What a host's certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostRequest {
    /// The host's name.
    pub name: String,
    /// Its addresses, if others reach it by address.
    pub addresses: Vec<IpAddr>,
    /// Lifetime.
    pub days: u32,
}

/// Makes a CA called `name` in `dir`, which is created if need be.
pub fn init(dir: &Path, name: &str, days: u32) -> Result<Written, PkiError> {
    let key = KeyPair::generate()?;
    let mut params = lifetime(days)?;
    params.distinguished_name = common_name(name);
    // No CA below this one.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let certificate = params.self_signed(&key)?;
    let (ca, key_path) = (dir.join(CA_CERTIFICATE), dir.join(CA_KEY));
    files::make_directory(dir)?;
    files::write_new(&[
        NewFile {
            path: &key_path,
            text: &key.serialize_pem(),
            access: Access::Owner,
        },
        NewFile {
            path: &ca,
            text: &certificate.pem(),
            access: Access::Everyone,
        },
    ])?;
    Ok(Written {
        certificate: ca.clone(),
        ca,
        key: key_path,
    })
}

/// Makes a certificate for a host with the CA in `dir` and writes it, its key, and a copy of the CA's certificate to
/// `out`, which is created if need be.
pub fn issue(dir: &Path, request: &HostRequest, out: &Path) -> Result<Written, PkiError> {
    if request.addresses.len() > ADDRESSES_MAX {
        return Err(PkiError::Addresses {
            count: request.addresses.len(),
        });
    }
    let ca_pem = read_ca(&dir.join(CA_CERTIFICATE))?;
    let key = KeyPair::generate()?;
    let certificate = sign(dir, &ca_pem, request, &key)?;
    let file = |suffix: &str| out.join(format!("{}.{suffix}", request.name));
    let (certificate_path, key_path) = (file("pem"), file("key"));
    files::make_directory(out)?;
    // First, as it may be another CA's that is there.
    let ca = out.join(CA_CERTIFICATE);
    files::copy_of(&ca, &ca_pem)?;
    files::write_new(&[
        NewFile {
            path: &key_path,
            text: &key.serialize_pem(),
            access: Access::Owner,
        },
        NewFile {
            path: &certificate_path,
            text: &certificate.pem(),
            access: Access::Everyone,
        },
    ])?;
    Ok(Written {
        ca,
        certificate: certificate_path,
        key: key_path,
    })
}

fn sign(
    dir: &Path,
    ca_pem: &str,
    request: &HostRequest,
    key: &KeyPair,
) -> Result<rcgen::Certificate, PkiError> {
    let params = host_params(request)?;
    let key_path = dir.join(CA_KEY);
    let malformed = |name, wanted| PkiError::Malformed {
        path: dir.join(name),
        wanted,
    };
    let ca_key =
        KeyPair::from_pem(&read_ca(&key_path)?).map_err(|_| malformed(CA_KEY, "private key"))?;
    let issuer = Issuer::from_ca_cert_pem(ca_pem, ca_key)
        .map_err(|_| malformed(CA_CERTIFICATE, "CA certificate"))?;
    let certificate = params.signed_by(key, &issuer)?;
    let ca = CertificateDer::from_pem_slice(ca_pem.as_bytes())
        .map_err(|_| malformed(CA_CERTIFICATE, "CA certificate"))?;
    verify(&ca, certificate.der()).map_err(|source| PkiError::Unsound {
        dir: dir.to_owned(),
        source,
    })?;
    Ok(certificate)
}

/// Holds the new certificate against the CA as the other host will, both as a server's and as a client's.
fn verify(ca: &CertificateDer<'_>, certificate: &CertificateDer<'_>) -> Result<(), webpki::Error> {
    let anchors = [webpki::anchor_from_trusted_cert(ca)?];
    let end = webpki::EndEntityCert::try_from(certificate)?;
    for usage in [
        webpki::KeyUsage::server_auth(),
        webpki::KeyUsage::client_auth(),
    ] {
        let algorithms = webpki::ALL_VERIFICATION_ALGS;
        end.verify_for_usage(
            algorithms,
            &anchors,
            &[],
            UnixTime::now(),
            usage,
            None,
            None,
        )?;
    }
    Ok(())
}

fn host_params(request: &HostRequest) -> Result<CertificateParams, PkiError> {
    let bad_name = || PkiError::Name {
        name: request.name.clone(),
    };
    // Checked as the other host's TLS will; this also keeps the name from being a path. "ca" would be the CA's files.
    let name = DnsName::try_from(request.name.as_str()).map_err(|_| bad_name())?;
    if request.name.eq_ignore_ascii_case("ca") || request.name.ends_with('.') {
        return Err(bad_name());
    }
    let mut params = lifetime(request.days)?;
    params.distinguished_name = common_name(name.as_ref());
    let dns = Ia5String::try_from(name.as_ref()).map_err(|_| bad_name())?;
    params.subject_alt_names = vec![SanType::DnsName(dns)];
    params
        .subject_alt_names
        .extend(request.addresses.iter().copied().map(SanType::IpAddress));
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn lifetime(days: u32) -> Result<CertificateParams, PkiError> {
    if !(1..=DAYS_MAX).contains(&days) {
        return Err(PkiError::Days { days });
    }
    let now = SystemTime::now();
    let mut params = CertificateParams::default();
    params.not_before = (now - CLOCK_TOLERANCE).into();
    params.not_after = (now + DAY * days).into();
    Ok(params)
}

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

fn read_ca(path: &Path) -> Result<String, PkiError> {
    files::read(path).map_err(|source| PkiError::Read {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests;
