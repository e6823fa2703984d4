use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use super::*;

fn host(name: &str) -> HostRequest {
    HostRequest {
        name: name.to_owned(),
        addresses: vec!["127.0.0.1".parse().unwrap()],
        days: 30,
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn der(path: &Path) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(path).unwrap()
}

#[test]
fn a_host_certificate_holds_for_its_names_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca");
    let out = dir.path().join("alpha");
    let made = init(&ca, "test CA", 3650).unwrap();
    let issued = issue(&ca, &host("alpha"), &out).unwrap();
    assert_eq!(
        (
            mode(&made.key),
            mode(&issued.key),
            mode(&ca),
            mode(&issued.ca)
        ),
        (0o600, 0o600, 0o700, 0o644)
    );
    assert_eq!(fs::read(&issued.ca).unwrap(), fs::read(&made.ca).unwrap());
    let (ca_der, alpha) = (der(&issued.ca), der(&issued.certificate));
    verify(&ca_der, &alpha).unwrap();
    let end = webpki::EndEntityCert::try_from(&alpha).unwrap();
    let holds = |name: &'static str| {
        let name = rustls_pki_types::ServerName::try_from(name).unwrap();
        end.verify_is_valid_for_subject_name(&name).is_ok()
    };
    assert!(holds("alpha") && holds("127.0.0.1"));
    assert!(!holds("beta") && !holds("127.0.0.2") && !holds("ca"));
    KeyPair::from_pem(&fs::read_to_string(&issued.key).unwrap()).unwrap();
    let other = init(&dir.path().join("other"), "test CA", 3650).unwrap();
    assert!(
        verify(&der(&other.ca), &alpha).is_err(),
        "another CA of the same name accepts it"
    );
}

#[test]
fn nothing_is_overwritten_and_a_second_host_beside_the_first_is_fine() {
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path();
    let made = init(ca, "CA", 10).unwrap();
    let before = fs::read(&made.key).unwrap();
    assert!(matches!(
        init(ca, "CA", 10).unwrap_err(),
        PkiError::Exists { .. }
    ));
    fs::remove_file(&made.ca).unwrap();
    fs::write(&made.ca, "precious").unwrap();
    fs::rename(&made.key, ca.join("moved")).unwrap();
    assert!(matches!(
        init(ca, "CA", 10).unwrap_err(),
        PkiError::Exists { .. }
    ));
    assert!(!made.key.exists(), "half a CA is left");
    assert_eq!(fs::read(ca.join("moved")).unwrap(), before);

    let ca = dir.path().join("second");
    init(&ca, "CA", 10).unwrap();
    issue(&ca, &host("alpha"), &ca).unwrap();
    issue(&ca, &host("beta"), &ca).unwrap();
    let error = issue(&ca, &host("alpha"), &ca).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("alpha.key exists: it is not overwritten"),
        "{error}"
    );
    let other = dir.path().join("third");
    init(&other, "CA", 10).unwrap();
    assert!(matches!(
        issue(&ca, &host("gamma"), &other).unwrap_err(),
        PkiError::Exists { .. }
    ));
    assert!(
        !other.join("gamma.key").exists(),
        "written beside the certificate of another CA"
    );
    fs::remove_file(ca.join("alpha.key")).unwrap();
    assert!(matches!(
        issue(&ca, &host("alpha"), &ca).unwrap_err(),
        PkiError::Exists { .. }
    ));
    assert!(
        !ca.join("alpha.key").exists(),
        "a key without its certificate is left"
    );
}

#[test]
fn a_ca_that_is_none_is_refused_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let (ca, out) = (dir.path().join("ca"), dir.path().join("out"));
    let refused = || issue(&ca, &host("alpha"), &out).unwrap_err();
    assert!(
        refused().to_string().contains("samsaractl pki init"),
        "{}",
        refused()
    );
    let made = init(&ca, "CA", 10).unwrap();
    let other = init(&dir.path().join("other"), "CA", 10).unwrap();
    fs::copy(&other.key, &made.key).unwrap();
    assert!(
        matches!(refused(), PkiError::Unsound { .. }),
        "{}",
        refused()
    );
    fs::write(&made.key, "nonsense").unwrap();
    assert!(
        refused()
            .to_string()
            .ends_with("ca.key is not a private key in PEM form")
    );
    fs::copy(&other.key, &made.key).unwrap();
    fs::write(&made.ca, "nonsense").unwrap();
    assert!(
        refused()
            .to_string()
            .ends_with("ca.pem is not a CA certificate in PEM form")
    );
    assert!(!out.exists());
}

#[test]
fn bad_names_and_lifetimes_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    init(dir.path(), "CA", 10).unwrap();
    for name in [
        "",
        "ca",
        "CA.",
        "a b",
        "../x",
        "a/b",
        "*.example",
        ".",
        "-a",
        "a\0b",
        &"a".repeat(64),
    ] {
        let error = issue(dir.path(), &host(name), dir.path()).unwrap_err();
        assert!(matches!(error, PkiError::Name { .. }), "{name:?}: {error}");
    }
    for days in [0, DAYS_MAX + 1, u32::MAX] {
        let error = init(&dir.path().join("x"), "CA", days).unwrap_err();
        assert!(matches!(error, PkiError::Days { .. }), "{error}");
        let request = HostRequest {
            days,
            ..host("alpha")
        };
        assert!(matches!(
            issue(dir.path(), &request, dir.path()).unwrap_err(),
            PkiError::Days { .. }
        ));
    }
    assert!(!dir.path().join("x").exists());
    init(&dir.path().join("long"), "CA", DAYS_MAX).unwrap();
}
