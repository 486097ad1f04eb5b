//! A certificate authority of its own, and a server's certificate by it.

use std::path::PathBuf;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

use super::directory::Directory;

/// The names that a server's certificate is good for.
pub const SERVER_NAMES: [&str; 3] = ["127.0.0.1", "localhost", "commonhold.test"];

/// An authority that signed one server's certificate, and nothing else.
#[derive(Debug, Clone)]
pub struct Certificates {
    /// The authority's certificate, PEM.
    pub authority: String,
    /// The server's certificate, PEM, good for [`SERVER_NAMES`].
    pub server: String,
    /// The server's private key, PEM.
    pub key: String,
}

impl Certificates {
    /// A new authority: clients that trust another one refuse the server.
    ///
    /// # Panics
    /// If the certificates cannot be made.
    #[must_use]
    pub fn make() -> Self {
        let mut authority = CertificateParams::default();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority.distinguished_name.push(rcgen::DnType::CommonName, "Commonhold test authority");
        let key = KeyPair::generate().expect("a key can be made");
        let authority = CertifiedIssuer::self_signed(authority, key).expect("the authority can be made");
        let server = CertificateParams::new(SERVER_NAMES.map(Into::into)).expect("the names are names");
        let key = KeyPair::generate().expect("a key can be made");
        let certificate = server.signed_by(&key, &authority).expect("the certificate can be signed");
        Self { authority: authority.pem(), server: certificate.pem(), key: key.serialize_pem() }
    }

    /// Writes `ca.pem`, `server.pem` and `server.key`, in this order.
    pub(super) fn write(&self, directory: &Directory) -> [PathBuf; 3] {
        [
            directory.write("ca.pem", &self.authority),
            directory.write("server.pem", &self.server),
            directory.write_secret("server.key", &self.key),
        ]
    }
}
