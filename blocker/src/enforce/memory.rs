//! The enforcer that only remembers: the oracle of the conformance suite and the target of `replay`.
