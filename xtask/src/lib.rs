//! What the verbs and the tests share: the verbs themselves, and the lab of network namespaces they run in.

pub mod lab;
