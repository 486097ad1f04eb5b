//! Keyed windows over a stream of events, with state and position committed together.
