//! Any bytes as the body of `POST /detokenize`: taken, or refused with every fault named. Nothing may panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use worker_http::{ErrorCode, RequestBody};

fuzz_target!(|body: &[u8]| {
    if let Err(error) = RequestBody::Detokenize.check(body, 512) {
        assert_eq!(error.code, ErrorCode::InvalidRequest);
        assert!(!error.errors.is_empty() && !error.message.is_empty());
    }
});
