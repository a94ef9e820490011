//! A link to the web page, as JSON.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::rfc3339;

/// The answer to `web`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LinkView {
    /// The address with a token, by which one browser can open the page once.
    pub url: String,
    /// For so long.
    pub valid_seconds: u64,
    /// When that ends.
    #[serde(with = "rfc3339")]
    pub expires_at: SystemTime,
}
