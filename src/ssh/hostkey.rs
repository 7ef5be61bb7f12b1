//! Signatures of host keys (RFC 4253, section 6.6; RFC 5656; RFC 8332).

use aws_lc_rs::rsa::PublicKeyComponents;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ECDSA_P521_SHA512_FIXED, ED25519,
    EcdsaVerificationAlgorithm, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA512, UnparsedPublicKey,
};

use crate::encoding::Reader;
use crate::error::SshError;

const CERTIFICATE: &str = "-cert-v01@openssh.com";

/// Longest RSA key: 8192 bits.
const RSA_BYTES_MAX: usize = 1024;
const EXPONENT_BYTES_MAX: usize = 8;

/// The key that a host showed, and proved to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostKey {
    /// The negotiated algorithm, such as `rsa-sha2-512`.
    pub algorithm: String,
    /// The key, or the certificate if the algorithm is one of certificates, as SSH encodes it.
    pub blob: Vec<u8>,
    /// Its signature of the session's id: the algorithm and the signature proper, each as a string.
    pub signature: Vec<u8>,
}

/// The algorithm without its suffix for certificates.
pub(crate) fn plain(algorithm: &str) -> &str {
    algorithm.strip_suffix(CERTIFICATE).unwrap_or(algorithm)
}

/// Verifies that a host key signed `message`, with the algorithm that was negotiated.
pub(crate) fn verify(key: &HostKey, message: &[u8]) -> Result<(), SshError> {
    let wrong_kind = || SshError::Malformed("its host key is of another type than agreed");
    let algorithm = plain(&key.algorithm);
    let is_certificate = algorithm.len() < key.algorithm.len();
    let (mut blob, mut signature) = (Reader::new(&key.blob), Reader::new(&key.signature));
    let kind = if algorithm.starts_with("rsa-sha2-") { "ssh-rsa" } else { algorithm };
    let expected = if is_certificate { format!("{kind}{CERTIFICATE}") } else { kind.to_owned() };
    if blob.string()? != expected.as_bytes() || signature.string()? != algorithm.as_bytes() {
        return Err(wrong_kind());
    }
    if is_certificate {
        // The nonce.
        blob.string()?;
    }
    let bytes = signature.string()?;
    let is_right = match algorithm {
        "ssh-ed25519" => UnparsedPublicKey::new(&ED25519, blob.string()?).verify(message, bytes).is_ok(),
        "ecdsa-sha2-nistp256" => ecdsa(&ECDSA_P256_SHA256_FIXED, 32, "nistp256", blob, message, bytes)?,
        "ecdsa-sha2-nistp384" => ecdsa(&ECDSA_P384_SHA384_FIXED, 48, "nistp384", blob, message, bytes)?,
        "ecdsa-sha2-nistp521" => ecdsa(&ECDSA_P521_SHA512_FIXED, 66, "nistp521", blob, message, bytes)?,
        "rsa-sha2-256" | "rsa-sha2-512" => {
            let (e, n) = (blob.positive(EXPONENT_BYTES_MAX)?, blob.positive(RSA_BYTES_MAX)?);
            let is_short = algorithm == "rsa-sha2-256";
            let method = if is_short { &RSA_PKCS1_2048_8192_SHA256 } else { &RSA_PKCS1_2048_8192_SHA512 };
            // Some servers leave out leading zeros.
            let bytes = left_padded(bytes, n.len()).ok_or(SshError::Signature)?;
            PublicKeyComponents { n, e }.verify(method, message, &bytes).is_ok()
        }
        _ => return Err(wrong_kind()),
    };
    if is_right { Ok(()) } else { Err(SshError::Signature) }
}

fn ecdsa(
    method: &'static EcdsaVerificationAlgorithm,
    bytes: usize,
    curve: &str,
    mut key: Reader<'_>,
    message: &[u8],
    signature: &[u8],
) -> Result<bool, SshError> {
    if key.string()? != curve.as_bytes() {
        return Err(SshError::Malformed("its host key is on another curve"));
    }
    let point = key.string()?;
    let mut numbers = Reader::new(signature);
    let (r, s) = (numbers.positive(bytes)?, numbers.positive(bytes)?);
    let fixed = [left_padded(r, bytes), left_padded(s, bytes)].map(Option::unwrap_or_default).concat();
    Ok(UnparsedPublicKey::new(method, point).verify(message, &fixed).is_ok())
}

/// The bytes behind so many zeros that they are `count`.
fn left_padded(bytes: &[u8], count: usize) -> Option<Vec<u8>> {
    let zeros = count.checked_sub(bytes.len())?;
    Some([&vec![0; zeros], bytes].concat())
}
