//! The Memcached backend of Commonhold, over the meta protocol.
