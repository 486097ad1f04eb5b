//! The embedded disk backend of Commonhold, on fjall.
