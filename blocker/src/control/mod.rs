//! The unix socket that answers the CLI.
