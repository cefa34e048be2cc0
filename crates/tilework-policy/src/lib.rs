//! Where bytes go.
#![forbid(unsafe_code)]
