//! Handshakes that are never finished: true QUIC Initials from forged addresses.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, socket,
};
use quinn_proto::crypto::rustls::QuicClientConfig;
use quinn_proto::{ClientConfig, Endpoint, EndpointConfig};
use rustls::client::AlwaysResolvesClientRawPublicKeys;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{DigitallySignedStruct, SignatureScheme};

/// Different ones, made before the flood: each costs a key pair.
const INITIALS: usize = 1000;
/// Between two.
const INTERVAL: Duration = Duration::from_millis(2);
/// Unused addresses of the target's /24, as forged sources.
const FORGED: std::ops::Range<u8> = 50..250;

/// Takes any server; it never comes to that.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

/// A key of no node, so that the server goes on as with a peer. DER of PKCS #8 and of a public key (RFC 8410), as leaderd's.
fn anybodys_key() -> Arc<CertifiedKey> {
    let seed = [7; 32];
    let public = ed25519_dalek::SigningKey::from_bytes(&seed).verifying_key().to_bytes();
    let pkcs8 =
        [&[0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20][..], &seed]
            .concat();
    let spki = [&[0x30, 0x2a, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 3, 0x21, 0][..], &public].concat();
    let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pkcs8));
    let key = rustls::crypto::ring::sign::any_supported_type(&der).expect("Ed25519");
    Arc::new(CertifiedKey::new(vec![CertificateDer::from(spki)], key))
}

/// Returns the first datagrams of this many connections, as leaderd itself would send them; every other one has a protocol that is refused.
fn initials(target: SocketAddr) -> Vec<Vec<u8>> {
    let mut tls = rustls::ClientConfig::builder_with_provider(
        rustls::crypto::ring::default_provider().into(),
    )
    .with_protocol_versions(&[&rustls::version::TLS13])
    .expect("TLS 1.3")
    .dangerous()
    .with_custom_certificate_verifier(Arc::new(Anybody))
    .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(anybodys_key())));
    let [ours, another] = ["leaderd/1", "another/1"].map(|protocol| {
        tls.alpn_protocols = vec![protocol.into()];
        let tls = QuicClientConfig::try_from(tls.clone()).expect("for QUIC");
        ClientConfig::new(Arc::new(tls))
    });
    let mut endpoint = Endpoint::new(Arc::new(EndpointConfig::default()), None, true, None);
    let now = Instant::now();
    (0..INITIALS)
        .map(|n| {
            let config = if n % 2 == 0 { &ours } else { &another }.clone();
            let (_, mut connection) =
                endpoint.connect(now, config, target, "leaderd.invalid").expect("an end");
            let mut bytes = Vec::new();
            let transmit = connection.poll_transmit(now, 1, &mut bytes).expect("an Initial");
            bytes.truncate(transmit.size);
            bytes
        })
        .collect()
}

/// IPv4 (RFC 791) and UDP (RFC 768) headers before a payload. The kernel fills in the IP checksum (raw(7)); UDP has none.
fn packet(from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) -> Vec<u8> {
    let udp = (8 + payload.len()) as u16;
    let mut bytes = vec![0x45, 0];
    bytes.extend((20 + udp).to_be_bytes());
    bytes.extend([0, 0, 0, 0, 64, 17, 0, 0]);
    bytes.extend(from.ip().octets());
    bytes.extend(to.ip().octets());
    for field in [from.port(), to.port(), udp, 0] {
        bytes.extend(field.to_be_bytes());
    }
    bytes.extend(payload);
    bytes
}

/// Sends until `over` says stop, at most `most`. Returns the number sent.
pub fn flood(target: &str, most: u32, over: impl FnOnce() -> Box<dyn Fn() -> bool>) -> u32 {
    let target: SocketAddrV4 = target.parse().expect("an address");
    let initials = initials(SocketAddr::V4(target));
    let raw = socket(AddressFamily::Inet, SockType::Raw, SockFlag::empty(), SockProtocol::Raw);
    let raw: OwnedFd = raw.expect("CAP_NET_RAW");
    let to = SockaddrIn::from(target);
    let over = over();
    let mut sent = 0;
    while sent < most && !over() {
        let [a, b, c, _] = target.ip().octets();
        let forged = FORGED.start + (sent % u32::from(FORGED.end - FORGED.start)) as u8;
        let from = SocketAddrV4::new(Ipv4Addr::new(a, b, c, forged), 1024 + (sent % 60_000) as u16);
        let bytes = packet(from, target, &initials[sent as usize % initials.len()]);
        match sendto(raw.as_raw_fd(), &bytes, &to, MsgFlags::empty()) {
            Ok(_) => {}
            Err(error) => panic!("{}: {}", IpAddr::from(*from.ip()), io::Error::from(error)),
        }
        sent += 1;
        std::thread::sleep(INTERVAL);
    }
    sent
}
