//! The code that flatc makes of `schemas/native.fbs`; `tests/schemas.rs` makes it again and compares.
// The code is not ours: it reads fields without checks because the verifier has been there before (see `verified` in the parent).
#![allow(unsafe_code, missing_docs, clippy::all, clippy::undocumented_unsafe_blocks)]

#[rustfmt::skip]
mod native_generated;

pub use native_generated::corelane::wire::*;
