//! Addresses never dropped, whoever asks.
#![forbid(unsafe_code)]
