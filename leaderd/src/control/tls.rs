//! TLS 1.3 with raw Ed25519 public keys on both sides (RFC 7250): no certificates, a peer *is* its key.
//!
//! An accepting node takes any key of the mesh and learns from it who the peer is; a dialing node takes only the key of
//! the node it dials. There is no resumption, so every connection proves its key again.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use leaderd_core::ids::NodeName;
use leaderd_core::mesh::ControlPublicKey;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{AlwaysResolvesClientRawPublicKeys, Resumption};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature_with_raw_key,
};
use rustls::pki_types::{
    CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer,
    UnixTime,
};
use rustls::server::AlwaysResolvesServerRawPublicKeys;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
use zeroize::Zeroizing;

use crate::secrets::Secret;

/// The versions of the protocol that this daemon speaks, the preferred one first; both ends take the first that they share.
/// Another version of the frames is another one of these (`docs/compatibility.md`).
const PROTOCOLS: &[&[u8]] = &[b"leaderd/2"];

/// What stands where TLS wants a server name; a raw key has none, and neither side checks it.
pub(super) const SERVER_NAME: &str = "leaderd.invalid";

/// DER of a SubjectPublicKeyInfo up to the 32 bytes of an Ed25519 key (RFC 8410 §4).
const SPKI_PREFIX: [u8; 12] =
    [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// DER of a PKCS #8 private key up to the 32 bytes of an Ed25519 seed (RFC 8410 §7).
const PKCS8_PREFIX: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];

/// The keys of the mesh. Shared with the verifier, so a new mesh file holds from the next handshake on.
#[derive(Clone, Default, Debug)]
pub struct KnownKeys(Arc<RwLock<BTreeMap<ControlPublicKey, NodeName>>>);

impl KnownKeys {
    pub fn set(&self, keys: BTreeMap<ControlPublicKey, NodeName>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = keys;
    }
    pub fn node(&self, key: &ControlPublicKey) -> Option<NodeName> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }
}

/// Our own key, ready for TLS.
#[derive(Clone)]
pub(super) struct Identity {
    provider: Arc<CryptoProvider>,
    key: Arc<CertifiedKey>,
}

impl Identity {
    pub(super) fn new(secret: &Secret, public: ControlPublicKey) -> Result<Self, Error> {
        let mut pkcs8 = Zeroizing::new([0; 48]);
        pkcs8[..16].copy_from_slice(&PKCS8_PREFIX);
        pkcs8[16..].copy_from_slice(secret.expose());
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(&pkcs8[..]));
        let key = rustls::crypto::ring::sign::any_supported_type(&der)?;
        let spki = CertificateDer::from([&SPKI_PREFIX[..], &public.0].concat());
        Ok(Self {
            provider: Arc::new(rustls::crypto::ring::default_provider()),
            key: Arc::new(CertifiedKey::new(vec![spki], key)),
        })
    }

    /// Takes any key of the mesh.
    pub(super) fn server(&self, known: KnownKeys) -> Result<QuicServerConfig, Error> {
        let verifier = Verifier { accept: Accept::Known(known), algorithms: self.algorithms() };
        let mut config = rustls::ServerConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(Arc::new(verifier))
            .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(self.key.clone())));
        config.alpn_protocols = protocols();
        config.send_tls13_tickets = 0;
        QuicServerConfig::try_from(config).map_err(|e| Error::General(e.to_string()))
    }

    /// Takes only this key.
    pub(super) fn client(&self, expected: ControlPublicKey) -> Result<QuicClientConfig, Error> {
        let verifier = Verifier { accept: Accept::Only(expected), algorithms: self.algorithms() };
        let mut config = rustls::ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(
                self.key.clone(),
            )));
        config.alpn_protocols = protocols();
        config.resumption = Resumption::disabled();
        QuicClientConfig::try_from(config).map_err(|e| Error::General(e.to_string()))
    }

    fn algorithms(&self) -> WebPkiSupportedAlgorithms {
        self.provider.signature_verification_algorithms
    }
}

fn protocols() -> Vec<Vec<u8>> {
    PROTOCOLS.iter().map(|p| p.to_vec()).collect()
}

/// The key that a connection proved to hold.
pub(super) fn peer_key(connection: &quinn::Connection) -> Option<ControlPublicKey> {
    let identity = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    public_key(identity.first()?)
}

fn public_key(spki: &CertificateDer<'_>) -> Option<ControlPublicKey> {
    let key = spki.as_ref().strip_prefix(&SPKI_PREFIX[..])?;
    Some(ControlPublicKey(key.try_into().ok()?))
}

#[derive(Debug)]
enum Accept {
    Known(KnownKeys),
    Only(ControlPublicKey),
}

#[derive(Debug)]
struct Verifier {
    accept: Accept,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Verifier {
    fn check(
        &self,
        spki: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
    ) -> Result<(), Error> {
        let key =
            public_key(spki).ok_or(Error::InvalidCertificate(CertificateError::BadEncoding))?;
        let known = match &self.accept {
            Accept::Known(keys) => keys.node(&key).is_some(),
            Accept::Only(expected) => key == *expected,
        };
        if known && intermediates.is_empty() {
            Ok(())
        } else {
            Err(Error::InvalidCertificate(CertificateError::UnknownIssuer))
        }
    }

    fn signature(
        &self,
        message: &[u8],
        spki: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let spki = SubjectPublicKeyInfoDer::from(spki.as_ref());
        verify_tls13_signature_with_raw_key(message, &spki, signature, &self.algorithms)
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(end_entity, intermediates).map(|()| ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is never offered".to_owned()))
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signature(message, cert, dss)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }
    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(end_entity, intermediates).map(|()| ClientCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is never offered".to_owned()))
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signature(message, cert, dss)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}
