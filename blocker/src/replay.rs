//! The engine fed from a file.
#![forbid(unsafe_code)]
