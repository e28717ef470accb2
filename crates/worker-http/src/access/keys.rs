//! API keys: kept where nothing prints them, compared in a time that says nothing of them.

use std::fmt;
use std::sync::Arc;

use axum::http::{HeaderMap, header};
use subtle::{Choice, ConstantTimeEq};

/// The longest key.
pub const MAX_KEY_BYTES: usize = 256;
/// The most keys: each request is compared with all of them.
pub const MAX_KEYS: usize = 256;

/// Keys that admit a request. Never printed: `Debug` says how many there are.
#[derive(Clone, Default)]
pub struct ApiKeys(Arc<[Padded]>);

/// Why keys are refused. Names the place of a key, never the key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// A key that no header could carry, or that is too long.
    #[error("key {number}: expected 1 to {MAX_KEY_BYTES} visible ASCII characters without spaces")]
    Malformed {
        /// Which one, counted from 1.
        number: usize,
    },
    /// More than [`MAX_KEYS`].
    #[error("expected at most {MAX_KEYS} keys, got {got}")]
    TooMany {
        /// How many there are.
        got: usize,
    },
}

/// A key in a place of fixed size, so that comparing two takes the same time whatever their lengths.
struct Padded {
    bytes: [u8; MAX_KEY_BYTES],
    len: u32,
}

impl Padded {
    fn new(key: &[u8]) -> Option<Self> {
        let mut bytes = [0; MAX_KEY_BYTES];
        bytes.get_mut(..key.len())?.copy_from_slice(key);
        Some(Self { bytes, len: key.len() as u32 })
    }

    fn ct_eq(&self, other: &Self) -> Choice {
        self.bytes.ct_eq(&other.bytes) & self.len.ct_eq(&other.len)
    }
}

impl ApiKeys {
    /// These keys; of none, [`is_empty`](Self::is_empty) is true, and no key is wanted.
    ///
    /// # Errors
    /// A key that is empty, too long or not visible ASCII; too many keys.
    pub fn new<K: AsRef<str>>(keys: impl IntoIterator<Item = K>) -> Result<Self, KeyError> {
        let mut padded = Vec::new();
        for (i, key) in keys.into_iter().enumerate() {
            let key = key.as_ref().as_bytes();
            let is_sound = !key.is_empty() && key.iter().all(u8::is_ascii_graphic);
            let key = Padded::new(key).filter(|_| is_sound).ok_or(KeyError::Malformed { number: i + 1 })?;
            padded.push(key);
        }
        if padded.len() > MAX_KEYS {
            return Err(KeyError::TooMany { got: padded.len() });
        }
        Ok(Self(padded.into()))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the request has one of these keys: `Authorization: Bearer KEY`, once. All keys are compared, whichever fits.
    pub(super) fn admit(&self, headers: &HeaderMap) -> bool {
        let mut values = headers.get_all(header::AUTHORIZATION).iter();
        let (Some(value), None) = (values.next(), values.next()) else { return false };
        let Some(given) = bearer(value.as_bytes()).and_then(Padded::new) else { return false };
        let any = self.0.iter().fold(Choice::from(0), |any, key| any | key.ct_eq(&given));
        any.into()
    }
}

/// What follows the scheme, whose case does not count.
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, key) = value.split_at_checked(b"Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| key.trim_ascii())
}

impl fmt::Debug for ApiKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ApiKeys({} keys)", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(keys: &[&str], authorization: &[&str], admitted: bool) {
        let mut headers = HeaderMap::new();
        for value in authorization {
            headers.append(header::AUTHORIZATION, value.parse().unwrap());
        }
        assert_eq!(ApiKeys::new(keys).unwrap().admit(&headers), admitted, "{keys:?} {authorization:?}");
    }

    #[test]
    fn admits_who_has_one_of_the_keys() {
        for authorization in ["Bearer first", "bearer first", "BEARER first", "Bearer  first", "Bearer second"] {
            check(&["first", "second"], &[authorization], true);
        }
        for authorization in [
            "",
            "first",
            "Bearer",
            "Bearer ",
            "Bearer firs",
            "Bearer firstt",
            "Basic first",
            "Bearer FIRST",
            "Bearerfirst",
        ] {
            check(&["first", "second"], &[authorization], false);
        }
        check(&["first"], &[], false);
        check(&["first"], &["Bearer first", "Bearer first"], false);
    }

    #[test]
    fn a_key_is_not_one_that_is_padded_with_zeros() {
        let longest = "k".repeat(MAX_KEY_BYTES);
        check(&[&longest], &[&format!("Bearer {longest}")], true);
        check(&[&longest], &[&format!("Bearer {longest}k")], false);
        assert!(!bool::from(Padded::new(b"a").unwrap().ct_eq(&Padded::new(b"a\0").unwrap())));
    }

    #[test]
    fn refuses_keys_that_no_header_carries_and_never_names_them() {
        for key in ["", "two words", "tab\t", "schlüssel", &"k".repeat(MAX_KEY_BYTES + 1)] {
            let error = ApiKeys::new(["good", key]).unwrap_err();
            assert_eq!(error, KeyError::Malformed { number: 2 }, "{key:?}");
            assert!(key.is_empty() || !error.to_string().contains(key));
        }
        assert_eq!(ApiKeys::new(vec!["k"; MAX_KEYS + 1]).unwrap_err(), KeyError::TooMany { got: MAX_KEYS + 1 });
    }

    #[test]
    fn nothing_prints_a_key() {
        assert_eq!(format!("{:?}", ApiKeys::new(["sk-secret", "other"]).unwrap()), "ApiKeys(2 keys)");
    }
}
