//! What the verbs and the tests share: the verbs themselves, one a module, and the lab of network namespaces.

use std::path::PathBuf;

pub mod bench;
pub mod build;
pub mod check;
pub mod conformance;
pub mod demo;
pub mod django;
pub mod fuzz;
pub mod lab;
pub mod run;
pub mod setup;
pub mod test;
pub mod vm;

/// The top of the repository.
pub fn workspace() -> PathBuf {
    let own = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    own.parent().map_or(own.clone(), std::path::Path::to_owned)
}
