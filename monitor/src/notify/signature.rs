//! Signs what is told, as [Standard Webhooks](https://www.standardwebhooks.com) do: HMAC-SHA-256 over the event's id, the
//! moment at which it is sent, and the body, so that none can be made up, changed, or sent again later.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ring::hmac;

/// What a secret begins with that is given as Base64.
const BASE64_MARK: &str = "whsec_";
/// Fewer bytes could be guessed.
const LEAST_BYTES: usize = 16;

/// A secret that receivers know as well. It is never printed.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(Vec<u8>);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl Secret {
    /// The secret that a file holds: its text without blanks around it; what follows `whsec_` is Base64.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let bytes = match text.strip_prefix(BASE64_MARK) {
            Some(encoded) => STANDARD
                .decode(encoded)
                .map_err(|error| format!("what follows {BASE64_MARK} is no Base64: {error}"))?,
            None => text.as_bytes().to_vec(),
        };
        if bytes.len() < LEAST_BYTES {
            return Err(format!(
                "the secret has {} bytes, and must have {LEAST_BYTES} at least: make one with \
                 `openssl rand -hex 32`",
                bytes.len()
            ));
        }
        Ok(Self(bytes))
    }

    /// The header `webhook-signature` for what is sent at `timestamp`, in seconds since 1970.
    pub(crate) fn sign(&self, id: &str, timestamp: u64, body: &str) -> String {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &self.0);
        let tag = hmac::sign(&key, format!("{id}.{timestamp}.{body}").as_bytes());
        format!("v1,{}", STANDARD.encode(tag))
    }
}

#[cfg(test)]
mod tests {
    use super::Secret;

    #[test]
    fn signatures_are_those_of_the_specification() {
        // The example of the specification's own reference libraries.
        let secret = Secret::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n").expect("a secret");
        let body = "{\"test\": 2432232314}";
        let signature = secret.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, body);
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn a_secret_may_be_plain_text_and_is_never_short_or_shown() {
        let secret = Secret::parse("  0123456789abcdef\n").expect("a secret");
        assert_eq!(secret.0, b"0123456789abcdef");
        assert_eq!(format!("{secret:?}"), "Secret(..)");
        assert!(Secret::parse("0123456789abcde").is_err_and(|why| why.contains("15 bytes")));
        assert!(Secret::parse("whsec_!!").is_err_and(|why| why.contains("Base64")));
        assert!(Secret::parse("").is_err());
    }
}
