//! The state that the instances of an application have in common, held right.
