//! The conformance kit that every backend and every layer of Commonhold passes.
