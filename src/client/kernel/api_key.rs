//! The API key.

use std::fmt;

use serde::{Deserialize, Serialize};
use ureq::http::HeaderValue;

/// The API key, which opens the account to whoever has it. `Debug` does not show it, and only the
/// pipe to a keeper carries it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiKey(String);

impl ApiKey {
    /// Takes a key, and trims the white space that a file or a paste leaves around it.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(text.trim().to_owned())
    }

    /// The key itself, for a hash.
    pub(crate) fn secret(&self) -> &str {
        &self.0
    }

    /// Authorization header with the key, or the reason why there can be none.
    pub(super) fn header(&self) -> Result<HeaderValue, &'static str> {
        if self.0.is_empty() {
            return Err("it is empty");
        }
        if !self.0.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("there are characters in it that no key has");
        }
        let mut value =
            HeaderValue::try_from(format!("Bearer {}", self.0)).map_err(|_| "it fits in no header")?;
        value.set_sensitive(true);
        Ok(value)
    }

    /// Returns `text` without the key, because a server may quote a key that it rejects.
    pub(super) fn hide_in(&self, text: &str) -> String {
        if self.0.is_empty() { text.to_owned() } else { text.replace(&self.0, "***") }
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}
