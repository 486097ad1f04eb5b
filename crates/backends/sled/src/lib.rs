//! Reads and writes existing sled databases, to move off them.
