//! The hash of a server's certificate that a login is bound to: `tls-server-end-point` (RFC 5929, section 4.1).

use sha2::{Digest, Sha256, Sha384, Sha512};

/// What the identifiers of the signatures by RSA and by ECDSA begin with (RFC 8017 and RFC 5758).
const RSA: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x01\x01";
const ECDSA: &[u8] = b"\x2a\x86\x48\xce\x3d\x04";

/// Made by the hash function with which the certificate is signed, but not by MD5 or SHA-1. `None` if the signature has no
/// hash function of its own, as Ed25519, or if it is unknown.
pub(super) fn hash(certificate: &[u8]) -> Option<Vec<u8>> {
    let algorithm = signature_algorithm(certificate)?;
    match (algorithm.strip_prefix(RSA), algorithm.strip_prefix(ECDSA)) {
        // MD5, SHA-1 and SHA-256.
        (Some([4 | 5 | 11]), _) | (_, Some([1] | [3, 2])) => Some(Sha256::digest(certificate).to_vec()),
        (Some([12]), _) | (_, Some([3, 3])) => Some(Sha384::digest(certificate).to_vec()),
        (Some([13]), _) | (_, Some([3, 4])) => Some(Sha512::digest(certificate).to_vec()),
        _ => None,
    }
}

/// A certificate is a sequence of what is signed, the algorithm of the signature, and the signature. An algorithm is a
/// sequence of its identifier and of parameters (RFC 5280, section 4.1).
fn signature_algorithm(certificate: &[u8]) -> Option<&[u8]> {
    let (certificate, _) = element(certificate)?;
    let (_signed, rest) = element(certificate)?;
    let (algorithm, _signature) = element(rest)?;
    Some(element(algorithm)?.0)
}

/// What the first element of this DER contains, and what follows the element (X.690, section 8.1).
fn element(der: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&[_kind, length], rest) = der.split_first_chunk()?;
    if length < 0x80 {
        return rest.split_at_checked(length.into());
    }
    let (length, rest) = rest.split_at_checked((length & 0x7f).into())?;
    let length = length.iter().try_fold(0_usize, |length, &byte| length.checked_mul(256)?.checked_add(byte.into()));
    rest.split_at_checked(length?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequence(content: &[u8]) -> Vec<u8> {
        let length = u16::try_from(content.len()).unwrap().to_be_bytes();
        [b"\x30\x82", &length[..], content].concat()
    }

    fn certificate(algorithm: &[u8]) -> Vec<u8> {
        let identifier = [&[6, algorithm.len() as u8], algorithm, b"\x05\x00"].concat();
        sequence(&[sequence(&[1; 300]), sequence(&identifier), b"\x03\x02\x00\x00".to_vec()].concat())
    }

    #[test]
    fn the_hash_is_that_of_the_signature() {
        let length = |algorithm: &[&[u8]]| hash(&certificate(&algorithm.concat())).map(|hash| hash.len());
        for last in [4, 5, 11] {
            assert_eq!(length(&[RSA, &[last]]), Some(32), "{last}");
        }
        assert_eq!([length(&[RSA, &[12]]), length(&[RSA, &[13]])], [Some(48), Some(64)]);
        assert_eq!([length(&[ECDSA, &[1]]), length(&[ECDSA, &[3, 2]])], [Some(32); 2]);
        assert_eq!([length(&[ECDSA, &[3, 3]]), length(&[ECDSA, &[3, 4]])], [Some(48), Some(64)]);
        // Ed25519.
        assert_eq!(length(&[&[0x2b, 0x65, 0x70]]), None);
        let whole = certificate(&[RSA, &[11]].concat());
        assert_eq!(hash(&whole), Some(Sha256::digest(&whole).to_vec()));
        assert!((0..whole.len()).all(|end| hash(&whole[..end]).is_none()));
        assert_eq!(hash(b"\x30\xff"), None);
    }
}
