//! Counts failures per jail and prefix.
#![forbid(unsafe_code)]
