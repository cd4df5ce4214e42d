//! What the verbs and the tests share: the lab of network namespaces.
