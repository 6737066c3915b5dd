//! The certificate of the RDP server: its key is made at each start, and it is signed with that key.

use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair},
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        crypto::ring::default_provider,
        pki_types::{CertificateDer, PrivatePkcs8KeyDer},
        server::NoServerSessionStorage,
    },
};

// The tags of DER.
const BIT_STRING: u8 = 0x03;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;

// Constant parts of the certificate, in DER.
const VERSION_3: &[u8] = b"\xa0\x03\x02\x01\x02";
const SERIAL_NUMBER: &[u8] = b"\x02\x01\x01";
const ECDSA_WITH_SHA256: &[u8] = b"\x30\x0a\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x02";
const KEY_ON_P256: &[u8] =
    b"\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07";
const COMMON_NAME: &[u8] = b"\x30\x16\x31\x14\x30\x12\x06\x03\x55\x04\x03\x0c\x0bguac-stress";

/// TLS with a new key and a certificate for it. Sessions cannot be resumed, so nothing is kept of them.
///
/// # Errors
///
/// When there are no random numbers.
pub fn acceptor() -> Result<TlsAcceptor> {
    let random = SystemRandom::new();
    let algorithm = &ECDSA_P256_SHA256_ASN1_SIGNING;
    let document =
        EcdsaKeyPair::generate_pkcs8(algorithm, &random).map_err(|_| anyhow!("ring makes no key"))?;
    let key = EcdsaKeyPair::from_pkcs8(algorithm, document.as_ref(), &random)
        .map_err(|error| anyhow!("ring refuses its own key: {error}"))?;
    let body = body(key.public_key().as_ref());
    let signature = key.sign(&random, &body).map_err(|_| anyhow!("ring signs nothing"))?;
    let certificate = der(SEQUENCE, &[&body, ECDSA_WITH_SHA256, &bit_string(signature.as_ref())]);
    let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from(certificate)],
            PrivatePkcs8KeyDer::from(document.as_ref().to_vec()).into(),
        )
        .context("use the certificate")?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config).into())
}

/// What is signed.
fn body(public_key: &[u8]) -> Vec<u8> {
    let from = der(UTC_TIME, &[b"200101000000Z"]);
    let until = der(GENERALIZED_TIME, &[b"99991231235959Z"]);
    let validity = der(SEQUENCE, &[&from, &until]);
    let key = der(SEQUENCE, &[KEY_ON_P256, &bit_string(public_key)]);
    let (issuer, subject) = (COMMON_NAME, COMMON_NAME);
    let parts =
        [VERSION_3, SERIAL_NUMBER, ECDSA_WITH_SHA256, issuer, validity.as_slice(), subject, key.as_slice()];
    der(SEQUENCE, &parts)
}

fn bit_string(bytes: &[u8]) -> Vec<u8> {
    const UNUSED_BITS: u8 = 0;
    der(BIT_STRING, &[&[UNUSED_BITS], bytes])
}

fn der(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    let [high, low] = (content.len() as u16).to_be_bytes();
    let length: &[u8] = match content.len() {
        0..0x80 => &[low],
        0x80..0x100 => &[0x81, low],
        _ => &[0x82, high, low],
    };
    [&[tag], length, &content].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_take_as_few_bytes_as_they_can() {
        assert_eq!(der(4, &[&[0; 0x7f]])[..3], [4, 0x7f, 0]);
        assert_eq!(der(4, &[&[0; 0x80]])[..4], [4, 0x81, 0x80, 0]);
        assert_eq!(der(4, &[&[0; 0x100]])[..5], [4, 0x82, 1, 0, 0]);
    }

    #[test]
    fn rustls_reads_the_certificate_and_finds_its_key() {
        acceptor().unwrap();
        acceptor().unwrap();
    }
}
