//! The token in a session's `cdp_ws_url`: a JWT that names the VM.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;

/// Makes a token for a session at `fqdn` that expires at `expires`, in seconds since 1970.
/// `signature` is not a valid signature. It is a secret, so nobody can invent a token.
pub(super) fn token(session_id: &str, fqdn: &str, expires: u64, signature: &str) -> String {
    let header = json!({ "alg": "HS256", "typ": "JWT" }).to_string();
    let payload = json!({ "exp": expires, "session": { "id": session_id, "fqdn": fqdn } }).to_string();
    let parts = [header.as_bytes(), payload.as_bytes(), signature.as_bytes()];
    parts.map(|part| URL_SAFE_NO_PAD.encode(part)).join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_has_three_parts_and_names_the_vm() {
        let token = token("abc", "127.1.2.3", 1_800_000_000, "secret?");
        let parts: Vec<_> = token.split('.').collect();
        assert_eq!(parts.len(), 3);
        let payload = URL_SAFE_NO_PAD.decode(parts[1]).expect("base64url");
        let payload: serde_json::Value = serde_json::from_slice(&payload).expect("JSON");
        assert_eq!(payload, json!({ "exp": 1_800_000_000, "session": { "id": "abc", "fqdn": "127.1.2.3" } }));
    }
}
