//! TLS certificates of the fake API server. Each server creates its own.

use std::net::SocketAddr;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::server::StartError;

/// The server's certificate, and the CA that its clients trust.
pub(crate) struct Identity {
    /// Accepts TLS connections with the server's certificate.
    pub(crate) acceptor: TlsAcceptor,
    /// The CA certificate, as PEM.
    pub(crate) ca_certificate: String,
}

/// Creates a CA, and a certificate that this CA signs. The certificate is valid for `address`, the loopback addresses,
/// `kubernetes.default.svc` and `names`.
pub(crate) fn identity(address: SocketAddr, names: &[String], http2: bool) -> Result<Identity, StartError> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "netpol test authority");
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;

    let mut all_names: Vec<String> =
        ["localhost", "127.0.0.1", "::1", "kubernetes.default.svc"].map(str::to_owned).into();
    all_names.push(address.ip().to_string());
    all_names.extend(names.iter().cloned());
    all_names.sort();
    all_names.dedup();
    let mut params = CertificateParams::new(all_names)?;
    params.distinguished_name.push(DnType::CommonName, "kube-apiserver");
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, &authority)?;

    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)?;
    let protocols: &[&[u8]] = if http2 { &[b"h2", b"http/1.1"] } else { &[b"http/1.1"] };
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(Identity { acceptor: TlsAcceptor::from(Arc::new(config)), ca_certificate: authority.pem() })
}
